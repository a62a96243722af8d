"""Forward-mode differentiation: no op has it, and none drops a tangent."""

import liger_losses
import pytest
import torch
from liger_core.testing import Builder
from liger_core.testing.running import device
from torch.autograd import forward_ad

M, H, V = 6, 8, 16
OPS = {
    "cross_entropy": lambda op, x, W, y: op(x @ W.t(), y),
    "linear_cross_entropy": lambda op, x, W, y: op(x, W, y),
    "linear_log_probs": lambda op, x, W, y: op(x, W, y).log_probs,
    "linear_kl_div": lambda op, x, W, y: op(x, W, x, W * 2),
    "linear_jsd": lambda op, x, W, y: op(x, W, x, W * 2),
    "linear_cosine": lambda op, x, W, y: op(x, W, x, W * 2),
}


@pytest.mark.parametrize("name", OPS)
@pytest.mark.parametrize("dual", ["input", "weight"])
def test_tangents_are_refused(name, dual):
    new = Builder(torch.float32, device())
    x, W, y = new.normal(M, H), new.normal(V, H), new.integers(V, M)
    with forward_ad.dual_level():
        if dual == "input":
            x = forward_ad.make_dual(x, torch.ones_like(x))
        else:
            W = forward_ad.make_dual(W, torch.ones_like(W))
        with pytest.raises(NotImplementedError):
            OPS[name](getattr(liger_losses, name), x, W, y)
    with pytest.raises((NotImplementedError, RuntimeError)):
        torch.func.jvp(
            lambda x: OPS[name](getattr(liger_losses, name), x, W, y), (x,), (torch.ones_like(x),)
        )
