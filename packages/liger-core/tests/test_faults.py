"""Wrong ops: each fault planted in demo_op.py is found, by the property meant to find it."""

from pathlib import Path

import pytest
import torch
from liger_core.testing import OpSuite, load_module
from liger_core.testing.interpreter import interpreting
from liger_core.testing.running import Case

specs = load_module(Path(__file__).with_name("specs.py"))
SOURCE = Path(__file__).with_name("demo_op.py").read_text()
ROW = "row = tl.program_id(0).to(tl.int64)"
STORE_Y = "tl.store(Y + row * N + cols, y.to(Y.dtype.element_ty), mask=mask)"
STORE_MEAN = "    tl.store(MEAN + row, mean)\n"
ADD_DW = "        dw += dy * (x - tl.load(MEAN + row))\n"
G = "        g = dy * w\n"
MEAN = "mean = tl.sum(x, axis=0) / N"

# fault: text of demo_op.py, what stands there instead, the property that finds it, what that says
KERNEL_FAULTS = {
    "load without mask": (
        "tl.load(X + row * stride_x + cols, mask=mask, other=0.0).to",
        "tl.load(X + row * stride_x + cols).to",
        "values",
        "load out of bounds",
    ),
    "store without mask": (
        STORE_Y,
        STORE_Y.replace(", mask=mask", ""),
        "values",
        "store out of bounds",
    ),
    "mask one too wide": (
        "mask = cols < N\n    x =",
        "mask = cols < N + 1\n    x =",
        "layouts",
        "out of bounds",
    ),
    "mask one too narrow": (
        STORE_Y,
        STORE_Y.replace("mask=mask", "mask=cols < N - 1"),
        "values",
        "NaN",
    ),
    "wrong fill": (
        "stride_x + cols, mask=mask, other=0.0).to",
        "stride_x + cols, mask=mask, other=1.0).to",
        "values",
        "rms",
    ),
    "int32 row": (ROW, "row = tl.program_id(0)", "large_offsets", "int32 overflow in multiply"),
    "int32 loop": (
        "row = i.to(tl.int64)",
        "row = i",
        "large_offsets",
        "int32 overflow in multiply",
    ),
    "two programs, one address": (
        STORE_MEAN,
        STORE_MEAN.replace("+ row", "+ row // 2"),
        "values",
        "race: programs",
    ),
    "reads what another program writes": (
        STORE_MEAN,
        STORE_MEAN + "    mean += 0.0 * tl.load(MEAN + tl.num_programs(0) - 1)\n",
        "values",
        "race: program",
    ),
    "unwritten statistic": (STORE_MEAN, "", "values", "NaN"),
    "unwritten, but hidden": (
        STORE_MEAN,
        STORE_MEAN + "    old = tl.load(Y + row * N)\n    mean += tl.where(old > 0, 1e-6, 0.0)\n",
        "outputs_written",
        "uninitialised",
    ),
    "rounded twice": (
        "y = (x - mean) *",
        "y = (x - mean).to(Y.dtype.element_ty) *",
        "values",
        "rms error",
    ),
    "gradient term missing": (
        "dx = g - tl.sum(g, axis=0) / N",
        "dx = g",
        "values",
        "gradient of x",
    ),
    "gradient off by 0.1%": ("dx = g - tl", "dx = 1.001 * g - tl", "gradcheck", "(?i)jacobian"),
    "gradient ignores an option": (
        "            dy = -dy\n",
        "            dy = dy\n",
        "values",
        "gradient of",
    ),
    "float64 in float32": (
        "acc = torch.promote_types(x.dtype, torch.float32)\n        mean",
        "acc = torch.float32\n        mean",
        "float64",
        "rms error",
    ),
    "input written": (
        STORE_MEAN,
        STORE_MEAN
        + "    tl.store(X + row * stride_x + cols, (2 * x).to(X.dtype.element_ty), mask=mask)\n",
        "values",
        "input x was written",
    ),
    "incoming gradient written": (
        G,
        G + "        tl.store(DY + row * stride_dy + cols, g.to(DY.dtype.element_ty), mask=mask)\n",
        "inputs_unchanged",
        "incoming gradient 0",
    ),
    "saved tensor written": (
        ADD_DW,
        ADD_DW + "        tl.store(MEAN + row, 0.0)\n",
        "second_backward",
        "second gradient of weight",
    ),
    "strides ignored": ("row * stride_x", "row * N", "layouts", "out of bounds|rms"),
    "depends on the batch": (
        MEAN,
        "mean = tl.sum(x / (N + 1e-3 * tl.num_programs(0)), axis=0)",
        "batch_invariance",
        "changes",
    ),
    "depends on the order": (
        ROW,
        "turn = tl.atomic_add(MEAN.to(tl.pointer_type(tl.int32)), 1)\n    " + ROW,
        "deterministic",
        "order of programs",
    ),
    "float atomic": (STORE_MEAN, "    tl.atomic_add(MEAN + row, mean)\n", "values", "float atomic"),
    "device assertion": (
        MEAN,
        MEAN + "\n    tl.device_assert(mean > 100.0, 'too small')",
        "values",
        "too small",
    ),
}
HOST_FAULTS = {
    "wrong flag for the weight": (
        "ctx.needs_input_grad[1]",
        "ctx.needs_input_grad[0]",
        "requires_grad",
        "gradient of weight",
    ),
    "output dtype": (
        "y = torch.empty((M, N), dtype=x.dtype",
        "y = torch.empty((M, N), dtype=torch.float32",
        "values",
        "dtype",
    ),
    "differentiable twice, wrongly": (
        "    @once_differentiable\n",
        "",
        "double_backward",
        "(?i)regex|did not raise",
    ),
    "bad shapes accepted": (
        "x.ndim != 2 or weight.shape != x.shape[1:]",
        "x.ndim != 2",
        "errors",
        "out of bounds",
    ),
    "saves without need": (
        "return CenterFunction.apply(x",
        "(weight.detach().requires_grad_() * 2).exp()\n    return CenterFunction.apply(x",
        "no_grad",
        "saved",
    ),
}


def properties_on(spec, name):
    """Run one property of the suite over everything it covers."""
    suite, test = OpSuite(), getattr(OpSuite, f"test_{name}")
    for row in test.select(spec):
        test(suite, row)


@pytest.mark.skipif(not interpreting(), reason="kernels run in the interpreter only")
@pytest.mark.parametrize("fault", [*KERNEL_FAULTS, *HOST_FAULTS])
def test_fault_is_found(fault, tmp_path):
    old, new, name, message = (KERNEL_FAULTS | HOST_FAULTS)[fault]
    assert old in SOURCE, f"demo_op.py has no {old!r} any more"
    # a file of its own, since Triton reads the source back
    path = tmp_path / "faulty_op.py"
    path.write_text(SOURCE.replace(old, new, 1))
    spec = specs.demo_spec(load_module(path))
    with pytest.raises(
        (AssertionError, RuntimeError, ValueError, pytest.fail.Exception), match=message
    ):
        properties_on(spec, name)


def test_case_reads_well():
    case = Case(specs.SPECS[0], (3, 77), {"negate": True}, torch.bfloat16)
    assert str(case) == "center-bf16-3x77-negate=True"
