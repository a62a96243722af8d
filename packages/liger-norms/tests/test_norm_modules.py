"""What the norm modules share: torch's epsilon, parameters that can be set again, early errors."""

import pytest
import torch
from liger_core.testing import Builder
from liger_core.testing.running import device
from liger_norms import (
    FusedAddRMSNorm,
    GatedRMSNorm,
    GroupNorm,
    LayerNorm,
    ModulatedRMSNorm,
    RMSNorm,
    gated_rms_norm,
    group_norm,
    rms_norm,
)

DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]


def small(*shape, dtype):
    """So small that an epsilon matters."""
    return Builder(dtype, device()).normal(*shape) * 1e-3


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_eps_none_is_that_of_torch(dtype):
    x = small(3, 64, dtype=dtype)
    expected = torch.nn.RMSNorm(64, eps=None, dtype=dtype, device=device())(x)
    bound = {"rtol": 4 * torch.finfo(dtype).eps, "atol": 0.0}
    options = {"eps": None, "dtype": dtype, "device": device()}
    torch.testing.assert_close(RMSNorm(64, **options)(x), expected, **bound)
    torch.testing.assert_close(ModulatedRMSNorm(64, **options)(x, x[0] * 0), expected, **bound)
    y, _ = FusedAddRMSNorm(64, **options)(x, torch.zeros_like(x))
    torch.testing.assert_close(y, expected, **bound)


def test_eps_none_is_that_of_the_sum():
    x = small(3, 64, dtype=torch.bfloat16)
    y, s = FusedAddRMSNorm(64, eps=None, device=device())(x, torch.zeros(3, 64, device=device()))
    expected = torch.nn.RMSNorm(64, eps=None, device=device())(s)
    torch.testing.assert_close(y, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "make",
    [
        lambda: RMSNorm(4, offset=1.0),
        lambda: LayerNorm(4, offset=1.0),
        lambda: FusedAddRMSNorm(4, offset=0.5),
        lambda: GatedRMSNorm(4),
        lambda: GroupNorm(2, 4),
    ],
    ids=["rms", "layer", "fused", "gated", "group"],
)
def test_parameters_are_set_again(make):
    """As after `to_empty` of a module that was made on the meta device."""
    with torch.device("meta"):
        module = make()
    module.to_empty(device=device())
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.fill_(7.0)
    module.reset_parameters()
    for name, value in make().state_dict().items():
        assert torch.equal(module.state_dict()[name].cpu(), value.cpu()), name


def test_sum_requires_no_gradient_for_a_weight():
    x = small(2, 8, dtype=torch.float32)
    y, s = FusedAddRMSNorm(8, device=device())(x, x)
    assert y.requires_grad
    assert not s.requires_grad
    y, s = FusedAddRMSNorm(8, device=device())(x, x.clone().requires_grad_())
    assert s.requires_grad


def test_bias_may_change_before_the_backward():
    """As with torch's GroupNorm: its values have no part in any gradient."""
    module = GroupNorm(2, 8, device=device())
    x = small(2, 8, 3, dtype=torch.float32).requires_grad_()
    y = module(x)
    with torch.no_grad():
        module.bias.add_(1)
    y.sum().backward()
    assert module.bias.grad is not None


def test_numbers_of_numpy():
    numpy = pytest.importorskip("numpy")
    x = small(2, 8, dtype=torch.float32)
    assert torch.equal(group_norm(x, numpy.int64(2)), group_norm(x, 2))
    ours = gated_rms_norm(x, x, group_size=numpy.int64(4))
    assert torch.equal(ours, gated_rms_norm(x, x, group_size=4))
    eps = numpy.float32(0.5)
    assert torch.equal(rms_norm(x, None, eps), rms_norm(x, None, float(eps)))
    with pytest.raises(TypeError, match="integer"):
        group_norm(x, 2.0)


def test_group_norm_is_contiguous():
    x = small(5, 2, 3, dtype=torch.float32).transpose(0, 1)
    assert group_norm(x, 5).is_contiguous()


@pytest.mark.parametrize("module", [RMSNorm, GatedRMSNorm])
def test_errors_of_a_constructor(module):
    with pytest.raises(ValueError, match="cast must be"):
        module(8, cast="bogus")
    with pytest.raises(ValueError, match="takes no weight"):
        module(8, cast="rstd")


@pytest.mark.parametrize("module", [RMSNorm, LayerNorm])
def test_offset_needs_a_weight(module):
    with pytest.raises(ValueError, match=r"offset 1\.0 needs a weight"):
        module(8, elementwise_affine=False, offset=1.0)
