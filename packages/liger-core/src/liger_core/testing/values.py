"""Properties about values: every output and gradient, whatever is asked and in any layout."""

import itertools

import torch

from .running import LAYOUTS, Case, check_values, noise_like, tensors_of
from .selection import per_case, per_option, per_spec, small
from .spec import OpSpec

__all__ = ["Values"]


class Values:
    @per_case
    def test_values(self, case: Case) -> None:
        """Outputs and gradients against fp64, in dtype and shape of the reference."""
        inputs = case.inputs()
        check_values(case, inputs, case.run(inputs))

    @per_spec
    def test_edges(self, spec: OpSpec) -> None:
        """`shapes` has the edges: zero rows, one row, size 1, 2^k - 1, 2^k + 1, over 65,536."""
        sizes = {n for shape in spec.shapes for n in shape}
        edges = {
            "zero_rows": 0 in sizes,
            "one_row": any(shape[0] == 1 for shape in spec.shapes),
            "size_one": any(1 in shape[1:] for shape in spec.shapes),
            "below_power": any(n > 4 and (n + 1) & n == 0 for n in sizes),
            "above_power": any(n > 4 and (n - 1) & (n - 2) == 0 for n in sizes),
            "wide": max(sizes) > 65_536,
        }
        missing = [
            edge for edge, there in edges.items() if not there and f"edge_{edge}" not in spec.skips
        ]
        assert not missing, (
            f"shapes of {spec.name} lack {missing}; add them, or skip edge_<name> with a reason"
        )

    @per_option
    def test_requires_grad(self, case: Case) -> None:
        """Every combination of inputs that require gradients; None where not asked."""
        inputs, names = case.inputs(), case.spec.grad
        combinations = itertools.chain.from_iterable(
            itertools.combinations(names, n) for n in range(len(names) + 1)
        )
        for wanted in combinations:
            check_values(
                case,
                inputs,
                case.run(inputs, wanted=wanted),
                f" with gradients for {wanted or 'nothing'}",
            )

    @per_option
    def test_layouts(self, case: Case) -> None:
        """Transposed, strided, sliced and expanded inputs; the same for incoming gradients."""
        case = case.without_inplace()
        plain = case.inputs()
        for name, layout in LAYOUTS.items():
            inputs = {n: layout(t) for n, t in plain.items()}
            check_values(case, inputs, case.run(inputs), f" of {name} inputs")
        for name, layout in LAYOUTS.items():
            grad_outputs = [layout(g) for g in noise_like(case.run(plain, wanted=()).outputs)]
            check_values(
                case, plain, case.run(plain, grad_outputs), f" for {name} incoming gradients"
            )

    @per_spec
    def test_batch_invariance(self, spec: OpSpec) -> None:
        """The bits of a row do not depend on the batch it is in, forward and backward."""
        shape = max((s for s in spec.shapes if s[-1] <= 4096), key=lambda s: s[0])
        cases = [Case(spec, shape, options, spec.dtypes[0]) for options in spec.options]
        checked = sum(_is_batch_invariant(case) for case in cases)
        assert checked, f"{spec.name}: no output has rows; name inputs in `rows`, or skip this"

    @per_option
    def test_gradcheck(self, case: Case) -> None:
        """Gradients agree with finite differences in fp64, also if an incoming one is undefined."""
        case = Case(case.spec, small(case.spec), case.options, torch.float64).without_inplace()
        inputs, names = case.inputs(), case.spec.grad

        def function(*tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
            arguments = inputs | dict(zip(names, tensors, strict=True))
            return tuple(tensors_of(case.spec.op(**arguments, **case.options)))

        leaves = [inputs[name].detach().requires_grad_() for name in names]
        assert torch.autograd.gradcheck(function, leaves, fast_mode=True, atol=1e-9, rtol=1e-4)

    @per_option
    def test_float64(self, case: Case) -> None:
        """fp64 inputs are computed in fp64."""
        case = Case(case.spec, small(case.spec), case.options, torch.float64)
        inputs = case.inputs()
        result = case.run(inputs)
        check_values(case, inputs, result)


def _is_batch_invariant(case: Case) -> bool:
    """Compare the rows of a batch to those of its parts; False if no output has rows."""
    inputs, names = case.inputs(), case.spec.rows
    batch = len(inputs[names[0]]) if names else 0
    full = case.run(inputs)
    if not all(t.ndim and len(t) == batch for t in full.outputs):
        return False
    assert batch > 2, f"{case.spec.name}: list a shape of three rows"
    for part in (slice(0, 1), slice(1, batch), slice(batch // 2, batch // 2 + 2)):
        some = {n: t[part] if n in names else t for n, t in inputs.items()}
        result = case.run(some, [g[part] for g in full.grad_outputs])
        full.rows(names, part).assert_same(result.rows(names), f"{part} changes with the batch")
    return True
