"""Every row of every table equals its formula on full logits in fp64: loss and all gradients, with
masks and bias, at any cut, through three matrix products or four.
"""

import posttrain_oracle as oracle
import pytest
import torch
from liger_core.testing import Builder
from liger_core.testing.running import device
from liger_posttrain import (
    LinearCPOLoss,
    LinearDPOLoss,
    LinearGRPOLoss,
    LinearKTOLoss,
    LinearORPOLoss,
    LinearSimPOLoss,
)
from liger_posttrain.algorithms import ALGORITHMS
from liger_posttrain.kto import UNPAIRED_LOSSES
from liger_posttrain.preference import PAIR_LOSSES

B, T, H, V = 6, 5, 8, 37
# the default; three rows of fp64, fewer than a sequence has; two sequences
CUTS = [None, 3 * V * 8, 11 * V * 8]


def new(seed=0):
    return Builder(torch.float64, device(), seed)


def case():
    """A head, targets that are partly ignored (a pair entirely), log-probabilities near ours."""
    x, W, b = new().normal(B, T, H), new(1).normal(V, H) * 0.3, new(2).normal(V)
    target = new(3).integers(V, B, T)
    target[0, :2], target[1, 4:], target[2], target[5] = -100, -100, -100, -100
    with torch.no_grad():
        lp, _ = oracle.tokens(x @ W.t() + b, target)
    near = [lp + 0.3 * new(seed).normal(B, T) for seed in (4, 5)]
    return [t.requires_grad_() for t in (x, W, b)], target, near


def assert_same(ours, leaves, right):
    """`right` of logits."""
    x, W, b = (t.detach().clone().requires_grad_() for t in leaves)
    expected = right(x @ W.t() + b)
    torch.testing.assert_close(ours, expected, rtol=1e-6, atol=1e-8)
    for a, e in zip(
        torch.autograd.grad(ours, leaves), torch.autograd.grad(expected, (x, W, b)), strict=True
    ):
        assert (a - e).norm() <= 1e-6 * e.norm()


@pytest.mark.parametrize("chunk_bytes", CUTS)
@pytest.mark.parametrize("loss_type", ALGORITHMS)
def test_policy(loss_type, chunk_bytes):
    leaves, target, (old, ref) = case()
    advantages = new(6).normal(B)
    terms = {"beta": 0.1, "entropy_coef": 0.02}
    out = LinearGRPOLoss(loss_type=loss_type, chunk_bytes=chunk_bytes, **terms)(
        *leaves[:2], target, linear_bias=leaves[2], advantages=advantages, old_log_probs=old,
        ref_log_probs=ref,
    )  # fmt: skip
    assert_same(
        out.loss,
        leaves,
        lambda z: oracle.policy(loss_type, z, target, old, ref, advantages, **terms),
    )


PAIRED = [
    *((LinearDPOLoss, name, {"loss_type": name}) for name in PAIR_LOSSES if name != "orpo"),
    *((LinearCPOLoss, name, {"loss_type": name}) for name in ("sigmoid", "hinge", "ipo", "simpo")),
    (LinearSimPOLoss, "simpo", {"beta": 0.5}),
    (LinearORPOLoss, "orpo", {}),
]


@pytest.mark.parametrize("chunk_bytes", CUTS)
@pytest.mark.parametrize(
    ("cls", "name", "settings"), PAIRED, ids=[f"{cls.__name__}-{name}" for cls, name, _ in PAIRED]
)
def test_pairs(cls, name, settings, chunk_bytes):
    leaves, target, (ref, _) = case()
    tensors = {"ref_log_probs": ref} if cls is LinearDPOLoss else {}
    loss = cls(chunk_bytes=chunk_bytes, **settings)
    out = loss(*leaves[:2], target, linear_bias=leaves[2], **tensors)
    terms = {
        "ref": tensors.get("ref_log_probs"),
        "beta": settings.get("beta", 0.1),
        "nll_weight": 1.0 if cls in (LinearCPOLoss, LinearORPOLoss) else 0.0,
    }
    assert_same(out.loss, leaves, lambda z: oracle.pairs(name, z, target, **terms))


@pytest.mark.parametrize("chunk_bytes", CUTS)
@pytest.mark.parametrize("loss_type", UNPAIRED_LOSSES)
def test_unpaired(loss_type, chunk_bytes):
    leaves, target, (ref, _) = case()
    desirable = torch.tensor([True, False, True, False, False, True], device=target.device)
    baseline = None if loss_type == "apo_zero_unpaired" else 0.3
    out = LinearKTOLoss(loss_type=loss_type, desirable_weight=0.8, chunk_bytes=chunk_bytes)(
        *leaves[:2], target, linear_bias=leaves[2], desirable=desirable, baseline=baseline,
        ref_log_probs=ref,
    )  # fmt: skip
    assert_same(
        out.loss, leaves, lambda z: oracle.unpaired(
            loss_type, z, target, ref, desirable, baseline, weights=(0.8, 1.0)
        ),
    )  # fmt: skip
