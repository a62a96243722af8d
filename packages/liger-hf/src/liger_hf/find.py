"""Walk a model: a row of the report for every layer of interest, with the patches to install."""

from collections.abc import Iterator
from dataclasses import replace

from torch import nn

from .experts import EXPERTS
from .find_head import find_heads
from .forms import Part, Verdict, load
from .mask import MASK
from .mlp import MLP
from .norms import NORMS
from .probe import probing, reseed
from .replaced import Patch, leftover, patches
from .reporting import Row
from .rotary import ROPE

__all__ = ["find"]

PARTS = (NORMS, MLP, EXPERTS, ROPE, MASK)
FLATTENED = "FullyShardedDataParallel has flattened its parameters; patch before it wraps the model"


def find(model: nn.Module, flags: dict[str, bool]) -> Iterator[tuple[Row, list[Patch]]]:
    """`flags` are the keywords of `apply`. A layer that is refused or patched has no patches."""
    # the mark that FSDP1 leaves; FSDP2 has parameters of the whole shape
    flattened = any(getattr(p, "_fsdp_flattened", False) for p in model.parameters())
    for row, found in _walk(model, flags):
        if flattened and (found or not row.op):
            yield replace(row, form="", op="", reason=FLATTENED), []
        else:
            yield row, found


def _walk(model: nn.Module, flags: dict[str, bool]) -> Iterator[tuple[Row, list[Patch]]]:
    parts = [part for part in PARTS if flags[part.flag]]
    seen: dict[object, Verdict] = {}
    with probing():
        for path, module in model.named_modules():
            for part in parts:
                if part.candidate(module):
                    row, found = _inspect(path, module, part, seen)
                    if row.op or any(word in row.kind.lower() for word in part.words):
                        yield row, found
        if flags["loss"]:
            for row, found in find_heads(model):
                yield replace(row, part="loss"), found


def _inspect(
    path: str, module: nn.Module, part: Part, seen: dict[object, Verdict]
) -> tuple[Row, list[Patch]]:
    row = Row(path, type(module).__name__, part=part.flag)
    for patch in patches(part.target(module)):
        return replace(patch.row, path=path), []
    target = part.target(module)
    if "forward" in vars(target) and leftover(target) is None:
        return replace(row, reason="its forward was replaced already, by another library"), []
    if load(part.package, part.op) is None:
        return replace(row, reason=f"pip install {part.package.replace('_', '-')}"), []
    key = (part.flag, part.key(module))
    if key not in seen:
        reseed()
        try:
            seen[key] = part.probe(module)
        except Exception as error:
            # foreign code on input that it was not written for
            seen[key] = Verdict("", reason=f"its probe failed: {type(error).__name__}: {error}")
    verdict = seen[key]
    row = replace(row, form=verdict.form, numbers=verdict.numbers)
    if verdict.options is None:
        return replace(row, reason=verdict.reason), []
    row = replace(row, op=f"{part.package}.{verdict.op}")
    return row, [part.patch(module, row, **verdict.options)]
