"""What a package measures: rows, peers, and where they are found."""

import runpy
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..testing.spec import load_specs

__all__ = ["OURS", "Family", "Peer", "Row", "compiled", "load_family"]

OURS = "ours"
Inputs = dict[str, Tensor]


@dataclass(frozen=True)
class Row:
    """An op at a shape, and how to run it.

    Args:
        op: name of the OpSpec.
        shape: of the measurement; `small` replaces it for a try on a CPU.
        name: what tables call the row and peers are listed under, where it is not `op`.
        note: variant of the row, for tables.
        options: keyword options of the op and of its reference.
        ours: further options of the op alone.
        inputs: replaces those of the OpSpec where a model has another layout or scale.
        traffic: replaces that of the OpSpec: shape -> bytes that a full pass must move.
        flops: shape -> floating-point operations of a full pass, for an op bound by them.
        edit: changes the fresh inputs in place.
        frozen: inputs without a gradient.
        outputs: which of the op's outputs count, none: all; peers return these alone.
        grad: False runs the forward alone, under no_grad.
        inplace: the op writes its inputs; it gets views of them, restored before each run.
        graph: whether to measure `gpu`.
        readme: whether the README's table shows the row.
        alone: measured without peers.
    """

    op: str
    shape: tuple[int, ...]
    small: tuple[int, ...]
    name: str = ""
    note: str = ""
    options: Mapping[str, Any] = field(default_factory=dict)
    ours: Mapping[str, Any] = field(default_factory=dict)
    inputs: Callable[..., Inputs] | None = None
    traffic: Callable[..., int] | None = None
    flops: Callable[..., int] | None = None
    edit: Callable[[Inputs], None] | None = None
    frozen: tuple[str, ...] = ()
    outputs: tuple[int, ...] = ()
    grad: bool = True
    inplace: bool = False
    graph: bool = True
    readme: bool = False
    alone: bool = False

    @property
    def title(self) -> str:
        return self.name or self.op

    def counted(self, outputs: Any) -> Any:
        """Those outputs of the op, or of its reference, that count."""
        return tuple(outputs[i] for i in self.outputs) if self.outputs else outputs


@dataclass(frozen=True)
class Peer:
    """Another implementation of an op.

    Args:
        name: of the implementation, in tables.
        load: imports it and returns a function of the row's inputs by keyword.
        package: distribution whose version is recorded; the peer is left out where it is absent.
        prepare: turns the inputs into what that function takes, outside of every clock.
        inplace: it writes its inputs or incoming gradients, which are restored before each run.
        graph: whether a CUDA graph can hold it; not if it reads back from the device.
    """

    name: str
    load: Callable[[], Callable[..., Any]]
    package: str = "torch"
    prepare: Callable[[Inputs], Inputs] | None = None
    inplace: bool = False
    graph: bool = True


@dataclass(frozen=True)
class Family:
    """Contents of a `benchmarks/bench.py` or `benchmarks/bench_<topic>.py`.

    Args:
        rows: what to measure.
        peers: other implementations, by the name of the row.
        heads: (M, H, V) of linear losses whose bare matrix products are timed as a floor.
        specs: OpSpec rows of the package's tests, by name; `load_family` fills them in.
    """

    rows: tuple[Row, ...]
    peers: Mapping[str, tuple[Peer, ...]]
    heads: tuple[tuple[int, int, int], ...] = ()
    specs: Mapping[str, Any] = field(default_factory=dict)


def compiled(load: Callable[[], Callable[..., Any]], **options: Any) -> Callable[..., Any]:
    """`torch.compile` of what `load` returns, for one shape; earlier compilations are forgotten."""
    torch._dynamo.reset()
    return torch.compile(load(), fullgraph=True, dynamic=False, options=options or None)


def load_family(root: Path, name: str) -> Family:
    """Read `packages/liger-<name>/benchmarks/bench*.py` and the OpSpec rows of its tests.

    Raises:
        ValueError: no such package or no such file in it.
    """
    package = root / "packages" / f"liger-{name}"
    paths = sorted((package / "benchmarks").glob("bench*.py"))
    if not paths:
        raise ValueError(
            f"{package}/benchmarks has no bench.py; run at the root of the repository or give "
            "--root"
        )
    parts: list[Family] = [runpy.run_path(str(path))["FAMILY"] for path in paths]
    family = Family(
        rows=tuple(row for part in parts for row in part.rows),
        peers={title: peers for part in parts for title, peers in part.peers.items()},
        heads=tuple(head for part in parts for head in part.heads),
        specs={spec.name: spec for spec in load_specs(str(package / "tests" / "x"))},
    )
    missing = {row.op for row in family.rows} - set(family.specs)
    if missing:
        raise ValueError(f"{package}/tests has no OpSpec named {', '.join(sorted(missing))}")
    return family
