"""The command line: `liger env`, `liger vendor`, and the same as `python -m liger_core`."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from liger_core.__main__ import main


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """liger_cli with the op `same`, importable."""
    source = tmp_path / "package/src/liger_cli"
    source.mkdir(parents=True)
    (source / "__init__.py").write_text(
        "from liger_core import lazy_exports\n__version__ = '1'\n"
        "__all__ = lazy_exports(__name__, {'same': ('same',)})\n"
    )
    (source / "same.py").write_text("def same(x):\n    return x\n")
    (source.parents[1] / "LICENSE").write_text("A licence")
    monkeypatch.syspath_prepend(source.parent)
    for name in ("liger_cli", "liger_cli.same"):
        monkeypatch.delitem(sys.modules, name, raising=False)


def test_env_is_a_report(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["env"]) == 0
    out = capsys.readouterr().out
    assert [line for line in out.splitlines() if not line.startswith(" ")][:2] == [
        "versions",
        "devices",
    ]


def test_env_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["env", "--json"]) == 0
    assert {"versions", "devices", "ops"} < json.loads(capsys.readouterr().out).keys()


@pytest.mark.usefixtures("package")
def test_vendor_writes_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "mine"
    assert main(["vendor", "same", str(folder)]) == 0
    assert capsys.readouterr().out == f"wrote {folder / 'same.py'}, which defines same\n"
    assert (folder / "same.py").read_text().endswith("def same(x):\n    return x\n")


@pytest.mark.usefixtures("package")
@pytest.mark.parametrize(
    ("op", "file", "message"),
    [
        ("nothing", "", "unknown op 'nothing'; known: "),
        ("same", "same.py", "exists; --force overwrites it"),
        ("same", "/", "is not a folder"),
    ],
)
def test_bad_input_is_one_line_and_code_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], op: str, file: str, message: str
) -> None:
    folder = tmp_path / "mine"
    if file == "/":
        folder.touch()
    else:
        folder.mkdir()
        (folder / (file or "other")).touch()
    assert main(["vendor", op, str(folder)]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("liger vendor: ")
    assert captured.err.count("\n") == 1
    assert message in captured.err


@pytest.mark.parametrize("arguments", [[], ["nothing"], ["vendor", "rms_norm"], ["env", "--yaml"]])
def test_wrong_usage_exits_with_code_2(arguments: list[str]) -> None:
    with pytest.raises(SystemExit, match=r"^2$"):
        main(arguments)


@pytest.mark.parametrize("arguments", [["--help"], ["env", "--help"], ["vendor", "--help"]])
def test_help(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match=r"^0$"):
        main(arguments)
    assert "usage: liger" in capsys.readouterr().out


def test_module_runs() -> None:
    command = [sys.executable, "-m", "liger_core", "vendor", "nothing", "."]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("liger vendor: unknown op")
