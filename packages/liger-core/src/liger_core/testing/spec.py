"""`OpSpec`: an op, its reference and what to run them on, for tests and benchmarks.

A package keeps its rows as `SPECS` in `tests/specs.py`, or in several `tests/specs_<topic>.py`.
`suite.py` tests them, `liger_core.bench` times them.
"""

import importlib.util
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

__all__ = ["BenchCase", "Builder", "OpSpec", "load_module", "load_specs", "replace"]

Shape = tuple[int, ...]
Inputs = dict[str, Tensor]
HALF = (torch.bfloat16, torch.float16)


class Builder:
    """Makes the input tensors of a case; bound to dtype, device and seed."""

    def __init__(
        self, dtype: torch.dtype, device: torch.device | str = "cpu", seed: int = 0
    ) -> None:
        self.dtype, self.device = dtype, torch.device(device)
        self.generator = torch.Generator(self.device).manual_seed(seed)

    def normal(self, *size: int, mean: float = 0.0, std: float = 1.0) -> Tensor:
        """Normal, in the case's dtype; the same values in each dtype up to rounding."""
        x = torch.randn(size, generator=self.generator, device=self.device, dtype=self._wide)
        return (x * std + mean).to(self.dtype)

    def uniform(self, *size: int, low: float = 0.0, high: float = 1.0) -> Tensor:
        """Uniform in [low, high), in the case's dtype."""
        x = torch.rand(size, generator=self.generator, device=self.device, dtype=self._wide)
        return (x * (high - low) + low).to(self.dtype)

    def integers(self, high: int, *size: int, low: int = 0) -> Tensor:
        """int64 in [low, high)."""
        return torch.randint(low, high, size, generator=self.generator, device=self.device)

    @property
    def _wide(self) -> torch.dtype:
        return torch.promote_types(self.dtype, torch.float32)


@dataclass(frozen=True)
class BenchCase:
    """A shape to time; its kernels are compiled for all targets and may not spill."""

    shape: Shape
    options: Mapping[str, Any] = field(default_factory=dict)
    dtype: torch.dtype = torch.bfloat16


@dataclass(frozen=True, repr=False)
class OpSpec:
    """One row: an op and everything the suite needs to know about it.

    Args:
        name: of the op; names tests and table rows.
        op: the public function.
        ref: the plain PyTorch reference, called with the same keywords.
        inputs: (builder, shape) -> tensor arguments by keyword.
        options: keyword arguments besides the tensors; each is run on each shape. An option
            `inplace=True` allows the op to write its inputs.
        shapes: small ones (an interpreted program costs about 0.7 ms), among them the edges that
            `test_edges` asks for.
        grad: differentiable inputs.
        op_only: options that the reference does not take, since they change no value.
        dtypes: of the floating inputs in value tests.
        bound: largest error relative to that of eager PyTorch in the same dtype; see `numerics.py`.
        mixed: further combinations of dtypes, by input, e.g. {"x": torch.bfloat16}; other inputs
            are fp32.
        rows: inputs with the batch in dimension 0 whose rows do not affect each other; outputs with
            that length are compared row for row.
        fuzz: per dimension of a shape the sizes that random cases may take, e.g. (range(0, 6),
            range(1, 300)); empty: only `shapes`.
        huge: a shape with more than 2^31 elements in some tensor.
        errors: (change of the keyword arguments, exception, regular expression): bad calls, made on
            `shapes[0]`.
        skips: property name (of `test_<property>`) -> reason why it does not hold. Shown as skipped
            tests.
        bench: shapes to time.
        traffic: (shape, itemsize) -> bytes that forward and backward must move at least.
        peak: (shape, itemsize, sms, **options) -> bytes that a full pass allocates at its peak,
            results included, above inputs and incoming gradients; holds within 2 % at the shapes of
            `bench`. `sms` is the number of streaming multiprocessors.
        files: how many files `liger vendor` writes for the op.
        peers: further implementations to time, by name, called with the same keywords.
    """

    name: str
    op: Callable[..., Any]
    ref: Callable[..., Any]
    inputs: Callable[[Builder, Shape], Inputs]
    shapes: tuple[Shape, ...]
    grad: tuple[str, ...]
    options: tuple[Mapping[str, Any], ...] = ({},)
    op_only: tuple[str, ...] = ("inplace",)
    dtypes: tuple[torch.dtype, ...] = (torch.float32, torch.bfloat16, torch.float16)
    bound: float = 2.0
    mixed: tuple[Mapping[str, torch.dtype], ...] = ()
    rows: tuple[str, ...] = ()
    fuzz: tuple[range, ...] = ()
    huge: Shape | None = None
    errors: tuple[tuple[Callable[[dict[str, Any]], object], type[Exception], str], ...] = ()
    skips: Mapping[str, str] = field(default_factory=dict)
    bench: tuple[BenchCase, ...] = ()
    traffic: Callable[[Shape, int], int] | None = None
    peak: Callable[..., int] | None = None
    files: int = 1
    peers: Mapping[str, Callable[..., Any]] = field(default_factory=dict)

    def __repr__(self) -> str:
        return f"OpSpec({self.name!r})"

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:
        # hypothesis prints arguments with it, and would list all fields of a dataclass
        printer.text(repr(self))

    def __post_init__(self) -> None:
        empty = [name for name, reason in self.skips.items() if not reason.strip()]
        if empty:
            raise ValueError(f"{self.name}: skips without a reason: {empty}")
        wrong = [shape for shape in self.shapes if self.fuzz and len(shape) != len(self.fuzz)]
        if wrong or not self.shapes:
            rank = len(self.fuzz)
            raise ValueError(f"{self.name}: shapes must have {rank} sizes; got {wrong or 'none'}")


def load_specs(test_file: str) -> Sequence[OpSpec]:
    """All `SPECS` of the `specs*.py` beside a test file."""
    paths = sorted(Path(test_file).parent.glob("specs*.py"))
    return tuple(spec for path in paths for spec in load_module(path).SPECS)


def replace(**changes: Callable[[dict[str, Any]], Any]) -> Callable[[dict[str, Any]], None]:
    """A bad call for `errors`: each named argument becomes what its function makes of them all."""
    return lambda args: args.update({name: change(args) for name, change in changes.items()})


def load_module(path: Path) -> Any:
    """A module by its path, once; for files beside tests, whatever the import mode of pytest.

    Raises:
        FileNotFoundError: there is no such file.
    """
    path = path.resolve()
    name = "_".join(path.with_suffix("").parts[-3:]).replace("-", "_")
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, path)
        if spec is None or spec.loader is None or not path.exists():
            raise FileNotFoundError(f"{path} does not exist")
        module = sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    return sys.modules[name]
