"""The command line of `train_llama.py`: what is wrong with the input is said in one line."""

import argparse
import math
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import torch


class Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message}\n")


def parser() -> Parser:
    this = Parser(
        prog="train_llama.py",
        description="Train a small Llama on real text twice, plain and patched by liger_hf. Ends "
        "with a table of loss, speed and memory, and a plot of both loss curves.",
        epilog="In brackets: the default on a CPU / on a GPU.",
    )
    add = this.add_argument
    add(
        "--text",
        type=Path,
        metavar="FILE",
        help="UTF-8 text to train on [Python's language reference]",
    )
    add(
        "--out",
        type=Path,
        default=Path("build/demo"),
        metavar="FOLDER",
        help="for losses.png [build/demo]",
    )
    add(
        "--device",
        type=device,
        default=default_device(),
        help="cpu, cuda, cuda:1, xpu ... [a GPU if there is one]",
    )
    add("--steps", type=whole(1), metavar="N", help="training steps [120 / 200]")
    add(
        "--batch-size",
        type=whole(1),
        metavar="N",
        help="sequences in a step [16 / by memory, 32 at most]",
    )
    add("--seq-len", type=whole(2), metavar="N", help="tokens in a sequence [256 / 1024]")
    add(
        "--vocab-size",
        type=whole(257),
        metavar="N",
        help="tokens in the vocabulary, at most [8192 / 32768]",
    )
    add(
        "--hidden-size",
        type=whole(64, multiple=64),
        metavar="N",
        help="width of the model [128 / 768]",
    )
    add("--layers", type=whole(1), metavar="N", help="depth of the model [2 / 6]")
    add("--lr", type=rate, metavar="X", help="peak learning rate of AdamW [3e-3 / 1e-3]")
    add(
        "--dtype",
        choices=("float32", "bfloat16"),
        help="of parameters and activations [float32 / bfloat16]",
    )
    add("--seed", type=whole(0), default=0, metavar="N", help="of parameters and batches [0]")
    return this


def whole(least: int, multiple: int = 1) -> Callable[[str], int]:
    def parse(text: str) -> int:
        number = int(text) if text.lstrip("-").isdecimal() else least - 1
        if not least <= number < 2**63 or number % multiple:
            kind = "a whole number" if multiple == 1 else f"a multiple of {multiple}"
            raise argparse.ArgumentTypeError(f"must be {kind}, at least {least}, not {text!r}")
        return number

    return parse


def rate(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not 0 < number < math.inf:
        raise argparse.ArgumentTypeError(f"must be a positive number, not {text!r}")
    return number


def device(text: str) -> torch.device:
    try:
        wanted = torch.device(text)
    except RuntimeError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a device") from None
    if wanted.type == "cpu":
        return torch.device("cpu")
    here = torch.accelerator.current_accelerator(check_available=True)
    count = torch.accelerator.device_count()
    if (
        wanted.type not in ("cuda", "xpu")
        or here is None
        or here.type != wanted.type
        or (wanted.index or 0) >= count
    ):
        found = f"{count} of {here.type}" if here is not None else "none but the cpu"
        raise argparse.ArgumentTypeError(f"there is no {text} here (devices: {found})")
    return torch.device(wanted.type, wanted.index or 0)


def default_device() -> torch.device:
    here = torch.accelerator.current_accelerator(check_available=True)
    return (
        torch.device(here.type, 0)
        if here is not None and here.type in ("cuda", "xpu")
        else torch.device("cpu")
    )


def read_text(path: Path | None) -> str:
    """The file, or the language reference. Raises ValueError with one line."""
    if path is None:
        try:
            from pydoc_data.topics import topics
        except ImportError:
            raise ValueError(
                "this Python comes without its language reference; give --text FILE"
            ) from None
        return "\n".join(topics[name] for name in sorted(topics))
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise ValueError(f"cannot read {path}: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{path} is not UTF-8 text: {error.reason} at byte {error.start}"
        ) from None
    if not text.strip():
        raise ValueError(f"{path} is empty")
    return text


def check_writable(path: Path) -> None:
    """Make the folder and see, before the training, that the file can be written.

    Raises ValueError with one line.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        existed = path.exists()
        path.open("ab").close()
        if not existed:
            path.unlink()
    except OSError as error:
        raise ValueError(f"cannot write {path}: {error.strerror}") from None
