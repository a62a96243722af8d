"""liger_core.bench: what is timed and recorded, and the tables; no test judges a time."""

import dataclasses
import json
import time

import pytest
import torch
from liger_core.bench import Family, Peer, Row, clocks, measure, run, tables
from liger_core.bench.__main__ import main
from liger_core.testing.spec import OpSpec

CPU = torch.device("cpu")


def double_ref(x):
    return 2 * x


def double_inplace(x):
    x.data.mul_(2)
    return x * 1


SPEC = OpSpec(
    name="double",
    op=lambda x, wrong=0.0: 2 * x + wrong,
    ref=double_ref,
    inputs=lambda new, shape: {"x": new.normal(*shape)},
    shapes=((4, 8),),
    grad=("x",),
    traffic=lambda shape, itemsize: 4 * shape[0] * shape[1] * itemsize,
    files=3,
)
ROW = Row("double", (64, 64), small=(4, 8), readme=True)


def family(*rows, peers=()):
    return Family(rows or (ROW,), {"double": peers}, specs={"double": SPEC})


def measured(tmp_path, *rows, peers=(), only=(), **options):
    path = run.run_family(
        "doubles", family(*rows, peers=peers), tmp_path, device=CPU, small=True,
        commit="c0ffee", peers=only or ("ours", "eager"), **options,
    )  # fmt: skip
    return json.loads(path.read_text())


def results(document):
    return {result["name"]: result for result in document["rows"][0]["results"]}


def test_result_has_times_errors_and_environment(tmp_path):
    document = measured(tmp_path)
    ours = results(document)["ours"]
    assert document["rows"][0]["bytes"] == 4 * 4 * 8 * 2
    assert document["environment"]["commit"] == "c0ffee"
    assert document["environment"]["versions"]["torch"] == torch.__version__
    assert ours["fwd"]["median"] > 0
    assert ours["full"]["runs"] >= 10
    assert ours["host"]["p10"] <= ours["host"]["median"] <= ours["host"]["p90"]
    assert ours["error"] == {"out": 0.0, "dx": 0.0}
    assert ours["peak"] is None
    assert "gpu" not in ours


def test_error_shows_a_wrong_result(tmp_path):
    row = Row("double", (64, 64), small=(4, 8), ours={"wrong": 1.0})
    error = results(measured(tmp_path, row))["ours"]["error"]
    assert error["out"] > 0.1
    assert error["dx"] == 0.0


def test_failing_peer_is_recorded_and_the_run_goes_on(tmp_path):
    def breaks(x):
        raise RuntimeError("first line\nsecond line")

    def loads_not():
        raise ImportError("no such symbol")

    peers = (
        Peer("breaks", lambda: breaks),
        Peer("loads-not", loads_not),
        Peer("last", lambda: double_ref),
    )
    names = ("ours", "breaks", "loads-not", "last")
    found = results(measured(tmp_path, peers=peers, only=names))
    assert found["breaks"] == {
        "name": "breaks", "package": "torch", "failed": "RuntimeError: first line",
        "seconds": found["breaks"]["seconds"],
    }  # fmt: skip
    assert found["loads-not"]["failed"] == "ImportError: no such symbol"
    assert found["last"]["error"]["out"] == 0.0


def test_row_without_a_reference_does_not_end_the_run(tmp_path):
    def breaks(given):
        raise RuntimeError("out of memory")

    rows = (Row("double", (64, 64), small=(4, 8), edit=breaks), ROW)
    first, second = measured(tmp_path, *rows)["rows"]
    assert first["results"] == [{"name": "reference", "failed": "RuntimeError: out of memory"}]
    assert [result["name"] for result in second["results"]] == ["ours", "eager"]


def test_absent_peer_is_left_out(tmp_path):
    def load():
        import package_that_is_not_there

        return package_that_is_not_there.double

    peers = (Peer("absent", load, "package-that-is-not-there"),)
    assert set(results(measured(tmp_path, peers=peers, only=("ours", "absent")))) == {"ours"}


def test_slow_peer_is_stopped(tmp_path):
    peers = (Peer("slow", lambda: lambda x: time.sleep(5)),)
    found = results(measured(tmp_path, peers=peers, only=("slow",), limit=1))
    assert found["slow"]["failed"] == "TimeoutError: stopped after 1 s"


def test_inputs_of_an_inplace_peer_are_restored(tmp_path):
    peers = (
        Peer("inplace", lambda: double_inplace, inplace=True),
        Peer("after", lambda: double_ref),
    )
    found = results(measured(tmp_path, peers=peers, only=("inplace", "after")))
    assert found["inplace"]["error"]["out"] == 0.0
    assert found["after"]["error"]["out"] == 0.0


def test_prepare_and_edit_change_the_inputs(tmp_path):
    row = Row("double", (64, 64), small=(4, 8), edit=lambda given: given["x"].zero_())
    peer = Peer("doubled", lambda: lambda y: 2 * y, prepare=lambda given: {"y": given["x"]})
    found = results(measured(tmp_path, row, peers=(peer,), only=("ours", "doubled")))
    assert found["doubled"]["error"] == {"out": 0.0, "dx": 0.0}


def test_frozen_and_no_grad_rows_have_no_gradient(tmp_path):
    rows = [Row("double", (64, 64), small=(4, 8), grad=False, alone=True)]
    ours = results(measured(tmp_path, *rows))
    assert set(ours) == {"ours"}
    assert ours["ours"]["error"] == {"out": 0.0}
    assert "fwd" not in ours["ours"]
    case = measure.make_case(
        SPEC, Row("double", (4,), (4,), frozen=("x",)), {"x": torch.ones(4)}, CPU
    )
    assert case.leaves == ()


def test_optional_input_that_a_row_leaves_out_gets_no_gradient():
    spec = dataclasses.replace(SPEC, grad=("x", "bias"))
    assert measure.make_case(spec, ROW, {"x": torch.ones(4)}, CPU).leaves == ("x",)


def test_only_selects_rows(tmp_path):
    rows = (ROW, Row("double", (32, 32), small=(2, 2), note="tiny"))
    assert [row["note"] for row in measured(tmp_path, *rows, only=("ours",))["rows"]] == [
        "",
        "tiny",
    ]
    document = run.run_family(
        "d", family(*rows), tmp_path, device=CPU, small=True, only="tiny", peers=("ours",)
    ).read_text()
    assert [row["note"] for row in json.loads(document)["rows"]] == ["tiny"]


def test_device_clock_restores_and_flushes_before_each_event(monkeypatch):
    log = []

    class Event:
        def record(self):
            log.append("event")

        def elapsed_time(self, end):
            return 0.25

    class Flush:
        def zero_(self):
            log.append("flush")

    device = torch.device("cuda")
    monkeypatch.setattr(clocks, "_event", Event)
    monkeypatch.setitem(clocks._buffers, device, Flush())
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device=None: None)
    times = clocks.device_times(lambda: log.append("run"), device, lambda: log.append("restore"))
    assert times == [0.25] * 200
    assert log[:5] == ["restore", "flush", "event", "run", "event"]
    assert len(log) == 5 * (3 + 200)


def test_peak_is_above_what_is_resident(monkeypatch):
    memory = {"now": 5 * 2**20, "peak": 0}
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device=None: None)
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda device: None)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: memory["now"])
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: memory["peak"])
    assert clocks.peak_mib(lambda: memory.update(peak=12 * 2**20), torch.device("cuda")) == 7.0


def gpu_result(name, gpu, peak):
    stat = {"median": gpu, "p10": gpu, "p90": gpu, "runs": 10}
    return {
        "name": name,
        "full": stat,
        "fwd": stat,
        "gpu": stat,
        "host": stat,
        "peak": peak,
        "error": {"out": 1e-3},
    }


def document():
    env = {
        "device": "NVIDIA X1",
        "driver": "1.2",
        "versions": {"torch": "9"},
        "date": "2030-01-01",
        "commit": "c0ffee",
    }
    failed = {"name": "peer", "failed": "E: a | b"}
    row = {
        "op": "double", "title": "double", "shape": [64, 64], "note": "", "readme": True,
        "files": 3, "bytes": 10**9, "flops": None,
        "results": [gpu_result("ours", 0.5, 10.0), gpu_result("eager", 2.0, 40.0), failed],
    }  # fmt: skip
    return {"family": "doubles", "environment": env, "ceilings": {"copy_tb_s": 4.0}, "rows": [row]}


@pytest.fixture
def tree(tmp_path):
    folder = tmp_path / "results"
    folder.mkdir()
    (folder / "x1-doubles.json").write_text(json.dumps(document()))
    (folder / "x1-again.json").write_text(
        json.dumps(document() | {"family": "again", "readme": False})
    )
    (folder / "cpu-doubles.json").write_text(json.dumps(document() | {"family": "cpu"}))
    readme = tmp_path / "README.md"
    readme.write_text(f"before\n{tables.BEGIN}\nold\n{tables.END}\nafter\n")
    return folder, readme, tmp_path / "docs" / "benchmarks.md"


def test_tables_fill_readme_and_report(tree):
    results, readme, docs = tree
    assert tables.write_tables(results, readme, docs) == [readme, docs]
    text = readme.read_text()
    assert text.startswith("before\n")
    assert text.endswith("after\n")
    assert "| `double` 64x64 | **0.500 ms** | 2.00 ms |  | eager 2.00 ms | 10 / 40 |" in text
    assert "2.00 TB/s, 50%" in docs.read_text()
    assert "E: a / b" in docs.read_text()
    assert "## cpu" not in docs.read_text()
    assert "## again" in docs.read_text()
    assert "again" not in text
    assert tables.write_tables(results, readme, docs) == []


def test_tables_check_writes_nothing(tree):
    results, readme, docs = tree
    arguments = ["tables", "--results", str(results), "--readme", str(readme), "--docs", str(docs)]
    assert main([*arguments, "--check"]) == 1
    assert not docs.exists()
    assert main(arguments) == 0
    assert main([*arguments, "--check"]) == 0


def test_bad_input_is_one_line_and_exit_code_2(tmp_path, capsys):
    assert main(["run", "nothing", "--root", str(tmp_path), "--device", "cpu"]) == 2
    assert main(["tables", "--results", str(tmp_path), "--readme", str(tmp_path / "none.md")]) == 2
    assert len(capsys.readouterr().err.strip().split("\n")) == 2


def test_compact_names_the_best_other():
    line = tables.compact([document()]).split("\n")[1]
    assert line.split() == ["double", "64x64", "0.500", "10", "2.00", "-", "eager", "2.00"]
