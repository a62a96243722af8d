"""Random cases over shape, dtype, options, layouts and requires-grad flags (hypothesis)."""

import math

from hypothesis import given, strategies as st

from . import launches
from .interpreter import program_order
from .running import LAYOUTS, Case, check_values, noise_like
from .selection import WIDE, per_spec
from .spec import HALF, OpSpec, Shape

__all__ = ["Fuzz"]

# a random case has few elements, where the ratio of two errors is a matter of luck
BOUND = 4.0


def shapes(spec: OpSpec) -> st.SearchStrategy[Shape]:
    """Shapes within `spec.fuzz`, more often than not at powers of two and beside them."""
    if not spec.fuzz:
        return st.sampled_from([s for s in spec.shapes if math.prod(s) <= WIDE])
    return st.tuples(*(_sizes(r) for r in spec.fuzz))


def _sizes(sizes: range) -> st.SearchStrategy[int]:
    edges = sorted({n for k in range(20) for n in (2**k - 1, 2**k, 2**k + 1) if n in sizes})
    return st.sampled_from(edges or sizes) | st.sampled_from(sizes)


def _layouts(case: Case) -> list[str]:
    # an op may refuse to write into a tensor of any strides
    if case.options.get("inplace"):
        return ["contiguous"]
    # equal rows may cancel; what is left in half precision is luck, eager's and ours
    return sorted(LAYOUTS.keys() - {"expanded"} if case.dtype in HALF else LAYOUTS)


class Fuzz:
    @per_spec
    @given(data=st.data())
    def test_fuzz(self, spec: OpSpec, data: st.DataObject) -> None:
        """Values, None gradients and unwritten inputs on random cases."""
        shape = data.draw(shapes(spec), label="shape")
        options = data.draw(st.sampled_from(spec.options), label="options")
        case = Case(spec, shape, options, data.draw(st.sampled_from(spec.dtypes), label="dtype"))
        layout = st.sampled_from(_layouts(case))
        program_order(data.draw(st.integers(0, 3), label="program order"))
        plain = case.inputs(seed=data.draw(st.integers(0, 1000), label="seed"))
        inputs = {
            n: LAYOUTS[data.draw(layout, label=f"layout of {n}")](t) for n, t in plain.items()
        }
        wanted = tuple(n for n in spec.grad if data.draw(st.booleans(), label=f"gradient of {n}"))
        with launches.paused():
            outputs = case.run(plain, wanted=()).outputs
            grads = [
                LAYOUTS[data.draw(layout, label="layout of gradient")](g)
                for g in noise_like(outputs)
            ]
            result = case.run(inputs, grads, wanted)
        check_values(case, inputs, result, bound=max(BOUND, spec.bound))
