"""examples/train_llama.py: what it prints and draws, and what it says to bad input."""

import importlib
import struct
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

EXAMPLES = Path(__file__).parents[1] / "examples"
SMALL = ["--batch-size", "2", "--seq-len", "32", "--hidden-size", "64", "--layers", "1"]
SMALL += ["--vocab-size", "300", "--steps", "4", "--device", "cpu"]

for needed in ("matplotlib", "tokenizers", "tqdm"):
    pytest.importorskip(needed)


@pytest.fixture
def example(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(EXAMPLES)
    return importlib.import_module("train_llama")


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text("the cat sat on the mat, the dog sat on the cat. " * 40)
    return path


def test_whole_job(text: Path, tmp_path: Path) -> None:
    """Two runs, each in its process; bars on stderr, the table on stdout, the plot in a folder."""
    command = [sys.executable, str(EXAMPLES / "train_llama.py"), *SMALL]
    command += ["--text", str(text), "--out", str(tmp_path / "new/out")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "plain: 100%" in done.stderr
    assert "patched: 100%" in done.stderr
    rows = {line.split("  ")[0].strip(): line.split() for line in done.stdout.splitlines()}
    assert float(rows["largest difference of a step's loss"][-1]) < 1e-4
    assert rows["final loss"][-1] == rows["final loss"][-2]
    assert any(row.startswith("peak memory, RSS") for row in rows)
    png = (tmp_path / "new/out/losses.png").read_bytes()
    assert png[:8] == b"\x89PNG\r\n\x1a\n"
    assert min(struct.unpack(">II", png[16:24])) > 500


def settings(example: ModuleType, seed: int = 0) -> object:
    return example.Settings(
        device=torch.device("cpu"), dtype="float32", hidden_size=64, layers=1, vocab_size=300,
        batch_size=2, seq_len=32, steps=4, lr=1e-3, seed=seed,
    )  # fmt: skip


def test_training_is_deterministic_and_learns(example: ModuleType, text: Path) -> None:
    tokens, vocab_size = example.tokenize(text.read_text(), 300)
    assert 256 < vocab_size <= 300
    deterministic = torch.are_deterministic_algorithms_enabled()
    try:
        first = example.train(settings(example), tokens, patched=False).losses
        again = example.train(settings(example), tokens, patched=False).losses
        other = example.train(settings(example, seed=1), tokens, patched=False).losses
    finally:
        torch.use_deterministic_algorithms(deterministic)
    assert first == again != other
    assert first[-1] < first[0]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--text", "missing.txt"], "cannot read missing.txt: No such file"),
        (["--text", "."], "cannot read .: Is a directory"),
        (["--text", "empty.txt"], "empty.txt is empty"),
        (["--text", "latin.txt"], "latin.txt is not UTF-8 text"),
        (["--text", "short.txt"], "too few for a batch of 2 x 32"),
        (["--batch-size", "100000000000"], "too few for a batch"),
        (["--out", "empty.txt"], "cannot write empty.txt/losses.png"),
        (["--steps", "0"], "argument --steps: must be a whole number, at least 1, not '0'"),
        (["--steps", "many"], "argument --steps"),
        (["--batch-size", "-3"], "argument --batch-size"),
        (["--hidden-size", "100"], "argument --hidden-size: must be a multiple of 64"),
        (["--vocab-size", "16"], "argument --vocab-size"),
        (["--seed", "-1"], "argument --seed"),
        (["--seed", "99999999999999999999"], "argument --seed"),
        (["--lr", "nan"], "argument --lr: must be a positive number"),
        (["--device", "toaster"], "argument --device: 'toaster' is not a device"),
        (["--device", "meta"], "argument --device: there is no meta here"),
        (["--device", "cuda:99"], "argument --device: there is no cuda:99 here"),
        (["--dtype", "int8"], "argument --dtype"),
        (["--what"], "unrecognized arguments: --what"),
    ],
)
def test_bad_input_is_one_line_and_code_2(
    example: ModuleType,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    message: str,
) -> None:
    (tmp_path / "empty.txt").write_text(" \n")
    (tmp_path / "short.txt").write_text("too short")
    (tmp_path / "latin.txt").write_bytes("caf\u00e9".encode("latin-1"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["train_llama.py", *SMALL, *arguments])
    with pytest.raises(SystemExit, match=r"^2$"):
        example.main()
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("train_llama.py: ")
    assert captured.err.count("\n") == 1
    assert message in captured.err


def test_output_that_may_not_be_written(
    example: ModuleType,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def denied(*args: object, **kwargs: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", denied)
    monkeypatch.setattr(sys, "argv", ["train_llama.py", *SMALL, "--out", str(tmp_path)])
    with pytest.raises(SystemExit, match=r"^2$"):
        example.main()
    assert capsys.readouterr().err.endswith("losses.png: Permission denied\n")


def test_help_names_every_option(
    example: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["train_llama.py", "--help"])
    with pytest.raises(SystemExit, match=r"^0$"):
        example.main()
    out = capsys.readouterr().out
    for option in ("--text", "--steps", "--batch-size", "--seq-len", "--out", "--device", "--seed"):
        assert option in out


def test_memory_of_this_process(example: ModuleType) -> None:
    now, peak = example.memory(torch.device("cpu"))
    assert 2**20 < now <= peak
