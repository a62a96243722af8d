"""What is said of a trace: its kernels, none where there are none, and what cannot be traced."""

import pytest
import torch
from liger_core.device import use_kernels
from liger_core.kernels import scale_
from liger_core.lang import HAS_TRITON
from liger_core.testing.interpreter import interpreting
from liger_core.testing.tracing import traced_kernels

pytestmark = pytest.mark.skipif(
    not HAS_TRITON or interpreting(), reason="Triton's kernels are traced"
)


def scaled(x):
    return scale_(x.clone(), torch.ones(()))


def broken(x):
    torch._dynamo.graph_break()
    return scaled(x)


@pytest.mark.parametrize("dynamic", [False, True])
def test_kernels_are_found(dynamic):
    assert len(traced_kernels(scaled, dynamic, x=torch.ones(6, 5))) == 1
    assert traced_kernels(torch.sin, dynamic, input=torch.ones(6, 5)) == []


def test_what_cannot_be_traced_raises():
    with pytest.raises(torch._dynamo.exc.Unsupported):
        traced_kernels(broken, False, x=torch.ones(6, 5))


def test_afterwards_tensors_of_the_cpu_take_pytorch():
    traced_kernels(scaled, False, x=torch.ones(6, 5))
    assert not use_kernels(torch.ones(1))
