"""Rotations that an op computes, and how a model's rotary function is recognised as one."""

import inspect
from collections.abc import Callable, Iterator
from itertools import takewhile
from typing import Any, NamedTuple

import torch

from .forms import load
from .probe import difference, measured, normal

__all__ = ["PACKAGE", "Rotation", "recognise"]

PACKAGE = "liger_rope"
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 2e-2}
# what models call the arguments of a rotation -> what the ops call them
ROLES = {
    **dict.fromkeys(("q", "xq", "query", "x", "tensor"), "q"),
    **dict.fromkeys(("k", "xk", "key"), "k"),
    **{name: name for name in ("cos", "sin", "unsqueeze_dim", "position_ids")},
    **dict.fromkeys(("freqs_cis", "freqs_ci"), "freqs"),
}


class Form(NamedTuple):
    """An op and its options. `half`: of cos and sin only the first half is read. `dim`: what the
    rotation takes as unsqueeze_dim where it has no such argument; -1 is right before the last.
    """

    words: str
    op: str = "rope"
    options: tuple[tuple[str, object], ...] = ()
    half: bool = False
    dim: int = 1


def _form(words: str, half: bool = False, **options: object) -> Form:
    return Form(words, "rope", tuple(options.items()), half)


FORMS = (
    _form("rope half"),
    _form("rope half, half-width tables", table_layout="pairs"),
    _form("rope half, opposite angle", inverse=True),
    _form("rope interleaved", layout="interleaved"),
    _form("rope interleaved, half-width tables", layout="interleaved", table_layout="pairs"),
    _form("rope interleaved, first half of the tables", True,
          layout="interleaved", table_layout="pairs"),
    _form("rope interleaved to half", True,
          layout="interleaved", out_layout="half", table_layout="pairs"),
    _form("rope half, trailing", trailing=True),
    _form("rope interleaved, trailing, half-width tables",
          layout="interleaved", table_layout="pairs", trailing=True),
    Form("rope complex", "complex_rope"),
)  # fmt: skip


class Rotation(NamedTuple):
    """How to stand in for one rotation: its form, its first parameters, its default of
    unsqueeze_dim and whether it returns a tensor, not a pair, where there is no k.
    """

    form: Form
    names: tuple[str, ...]
    alone: bool

    def bind(self, op: Any, function: Callable[..., Any]) -> Callable[..., Any]:
        """What calls the op in place of `function`, or that where the op does not do all of it."""
        options = dict(self.form.options)
        form, names, alone = self.form, self.names, self.alone

        def rotation(*args: Any, **kwargs: Any) -> Any:
            if len(args) > len(names) or not kwargs.keys() <= ROLES.keys():
                return function(*args, **kwargs)
            given: dict[str, Any] = {
                ROLES[name]: value for name, value in zip(names, args, strict=False)
            }
            given.update({ROLES[name]: value for name, value in kwargs.items()})
            tables = [given[name] for name in ("cos", "sin", "freqs") if name in given]
            # of angles that are learnt
            if any(table.requires_grad for table in tables):
                return function(*args, **kwargs)
            if form.half:
                tables = [table[..., : table.shape[-1] // 2] for table in tables]
            dim = given.get("unsqueeze_dim", form.dim)
            if dim < 0:
                dim = tables[0].ndim + dim
            q, k = op(given["q"], given.get("k"), *tables, unsqueeze_dim=dim, **options)
            return q if alone and k is None else (q, k)

        return rotation


def recognise(name: str, function: Callable[..., Any]) -> tuple[str, Rotation | None, float]:
    """A form's words with the rotation that agrees, or the reason why none does; the difference."""
    parameters = inspect.signature(function).parameters
    names, tried = tuple(takewhile(ROLES.__contains__, parameters)), []
    # of a call that gives more, the function does all
    more = [p for p in parameters.values() if p.name not in names]
    unknown = [p for p in more if p.name in ROLES or p.default is p.empty]
    roles = {ROLES[n] for n in names}
    if unknown or "q" not in roles or not ({"cos", "sin"} <= roles or "freqs" in roles):
        return f"{name} takes ({', '.join(parameters)})", None, float("inf")
    cases = list(_cases(function, names))
    for form in FORMS:
        if ("freqs" in roles) != (form.op == "complex_rope") or not cases:
            continue
        dims = [parameters["unsqueeze_dim"].default] if "unsqueeze_dim" in names else [1, 2, -1]
        for dim in dims:
            for alone in (False, True):
                rotation = Rotation(form._replace(dim=dim), names, alone)
                ratio, gap = _gap(rotation, function, cases)
                if ratio <= 1.0:
                    return form.words, rotation, gap
                tried.append((ratio, gap, form.words))
    _, gap, words = min(tried, default=(0.0, float("inf"), "any"))
    return f"{name} is none of the rotations; closest is {words}, {measured(gap)}", None, gap


class _Case(NamedTuple):
    arguments: dict[str, Any]
    expected: Any
    tolerance: float


def _cases(function: Callable[..., Any], names: tuple[str, ...]) -> Iterator[_Case]:
    """Inputs of every shape that the function takes, with what it returns."""
    B, T, D = 2, 5, 16
    dims: tuple[int | None, ...] = (1, 2) if "unsqueeze_dim" in names else (None,)
    complex = not {"cos", "sin"} & set(names)
    shapes = (
        ((B, 3, T, D), (B, T)),
        ((B, T, 3, D), (B, T)),
        ((T, 3, D), (T,)),
        ((B, T, 3, D), (T,)),
    )
    for dtype, tolerance in TOLERANCE.items():
        for dim in dims:
            for shape, rows in shapes:
                # R is D, half of it, or tables of so many pairs
                for width in (D // 2,) if complex else (D, D // 2, D // 4):
                    q, k = normal(*shape, dtype=dtype), normal(*shape, dtype=dtype)
                    values: dict[str, Any] = {
                        "q": q, "k": k,
                        "cos": normal(*rows, width, dtype=dtype),
                        "sin": normal(*rows, width, dtype=dtype),
                        "freqs": torch.complex(normal(*rows, width), normal(*rows, width)),
                        "unsqueeze_dim": dim,
                    }  # fmt: skip
                    given = {n: values[ROLES[n]] for n in names if values.get(ROLES[n]) is not None}
                    absent = {n: None for n in given if ROLES[n] == "k"}
                    for arguments in (given, given | absent) if absent else (given,):
                        try:
                            expected = function(**arguments)
                        except Exception:
                            continue
                        # shapes that fit by accident
                        if all(y is None or y.shape == q.shape for y in _several(expected)):
                            yield _Case(arguments, expected, tolerance)


def _several(results: Any) -> tuple[Any, ...]:
    return results if isinstance(results, tuple) else (results,)


def _gap(
    rotation: Rotation, function: Callable[..., Any], cases: list[_Case]
) -> tuple[float, float]:
    """The largest difference: in tolerances of its dtype, and as it is."""
    worst, run = (0.0, 0.0), rotation.bind(load(PACKAGE, rotation.form.op), function)
    for case in cases:
        try:
            actual = run(**case.arguments)
        except Exception:
            return float("inf"), float("inf")
        if type(actual) is not type(case.expected):
            return float("inf"), float("inf")
        for a, b in zip(_several(case.expected), _several(actual), strict=True):
            if a is not b:
                gap = difference(a, b)
                worst = max(worst, (gap / case.tolerance, gap))
    return worst
