"""What a test of the suite runs over: decorators that `OpSuite` reads."""

import inspect
import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import torch

from .running import Case
from .spec import OpSpec

__all__ = ["argument", "cases", "per_case", "per_option", "per_spec"]

WIDE = 50_000
Test = TypeVar("Test", bound=Callable[..., Any])


def per_case(test: Test) -> Test:
    """Argument `case`: every option on every shape in every dtype (one in turn if it is wide)."""
    test.select = _all_cases  # type: ignore[attr-defined]
    return test


def per_option(test: Test) -> Test:
    """Argument `case`: every option, on the first shape, in the first dtype."""
    test.select = _options  # type: ignore[attr-defined]
    return test


def per_spec(test: Test) -> Test:
    """Argument `spec`."""
    test.select = lambda spec: [spec]  # type: ignore[attr-defined]
    return test


def argument(test: Callable[..., Any]) -> str | None:
    """The name of a test's parametrised argument."""
    if not hasattr(test, "select"):
        return None
    return next(name for name in ("case", "spec") if name in inspect.signature(test).parameters)


def cases(test: Any, spec: OpSpec) -> Sequence[Any]:
    return list(test.select(spec))


def _all_cases(spec: OpSpec) -> Iterator[Case]:
    for (i, options), shape in itertools.product(enumerate(spec.options), spec.shapes):
        # a wide row can take thousands of programs: there each option gets one dtype, in turn
        wide = torch.Size(shape).numel() > WIDE
        for dtype in (spec.dtypes[i % len(spec.dtypes)],) if wide else spec.dtypes:
            yield Case(spec, shape, options, dtype)


def _options(spec: OpSpec) -> list[Case]:
    return [Case(spec, spec.shapes[0], options, spec.dtypes[0]) for options in spec.options]


def small(spec: OpSpec) -> tuple[int, ...]:
    """A small shape without a dimension of 0 or 1, for tests that call the op often."""
    return min(
        (s for s in spec.shapes if min(s) > 1),
        key=lambda s: torch.Size(s).numel(),
        default=spec.shapes[0],
    )
