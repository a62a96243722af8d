"""Peak memory counted on fake tensors: also what an operator allocates inside, and frees."""

import torch
from liger_core.testing import OpSpec
from liger_core.testing.memory import counted_peak
from liger_core.testing.running import Case
from torch import Tensor
from torch._subclasses import FakeTensorMode

N = 1000


@torch.library.custom_op("liger_core_tests::doubled", mutates_args=())
def doubled(x: Tensor) -> Tensor:
    """2x, by way of a buffer of ten times its size and of the elements that are not zero."""
    index = (x != 0).nonzero().squeeze(1)
    buffer = x.new_zeros(10, x.numel())
    buffer[0, index] = x[index] * 2
    return buffer[0].clone()


@doubled.register_fake
def _(x: Tensor) -> Tensor:
    return torch.empty_like(x)


doubled.register_autograd(lambda ctx, g: doubled(g))


def test_the_body_of_an_operator_counts() -> None:
    spec = OpSpec(
        name="doubled",
        op=doubled,
        ref=lambda x: 2 * x,
        inputs=lambda new, shape: {"x": new.normal(*shape)},
        shapes=((N,),),
        grad=("x",),
    )
    case = Case(spec, (N,), {}, torch.float32)
    x = torch.ones(N, requires_grad=True)
    (grad,) = torch.autograd.grad(doubled(x).sum(), x)
    assert torch.equal(grad, torch.full((N,), 2.0))
    with FakeTensorMode():
        peak = counted_peak(case, case.inputs(on=torch.device("cpu")))
    # the result, and in the backward the buffer, index and two copies of N elements
    assert 10 * 4 * N < peak < 16 * 4 * N
