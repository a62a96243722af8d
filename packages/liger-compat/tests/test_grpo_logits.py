"""Policy losses of logits: those of hidden states, and of each token by itself."""

import pytest
import torch
from liger_kernel.chunked_loss.functional import liger_fused_linear_grpo
from liger_kernel.ops import GrpoLossFunction
from liger_kernel.transformers.grpo_loss import fused_selective_log_softmax, triton_grpo_loss
from torch.testing import assert_close

B, L, V = 3, 5, 7


def tensors():
    torch.manual_seed(0)
    logits = torch.randn(B, L + 1, V, dtype=torch.float64).requires_grad_()
    ids = torch.randint(0, V, (B, L))
    mask = torch.ones(B, L, dtype=torch.long)
    mask[1, 3:] = 0
    old, ref = (-torch.rand(B, L).double() - 1 for _ in range(2))
    return logits, ids, mask, torch.tensor([1.0, -0.5, 0.3]).double(), old, ref


def test_log_probabilities():
    logits, ids, mask, *_ = tensors()
    prompt = torch.zeros(B, 2, dtype=torch.long)
    actual = fused_selective_log_softmax(logits, torch.cat([prompt, ids], 1), 0.7, mask)
    log_p = (logits[:, :-1] / 0.7).log_softmax(-1).gather(-1, ids[..., None])[..., 0]
    assert_close(actual, log_p * mask)


CASES = [
    {}, {"loss_type": "grpo", "importance_sampling_level": "sequence", "delta": 1.1},
    {"loss_type": "bnpo", "beta": 0.0}, {"loss_type": "dr_grpo", "max_completion_length": 9},
    {"loss_type": "cispo", "eps_high": 1.5}, {"loss_type": "sapo", "sapo_temperature_neg": 2.0},
    {"loss_type": "vespo"}, {"use_bias_correction_kl": True, "num_items_in_batch": 20},
]  # fmt: skip


@pytest.mark.parametrize("options", CASES, ids=str)
def test_losses(options):
    """Hidden states that are the logits, under a head that is the identity."""
    logits, ids, mask, advantages, old, ref = tensors()
    ratio = torch.rand(B, L).double() + 0.5
    named = {"temperature": 0.7, "beta": 0.1, "eps_high": 0.3, **options}
    loss, metrics = triton_grpo_loss(
        logits, old, ref, ids, advantages, mask, reduce=True, vllm_is_ratio=ratio, **named
    )
    given = {n.replace("eps_", "epsilon_"): v for n, v in named.items()}
    expected, theirs = liger_fused_linear_grpo(
        logits[:, :-1], torch.eye(V).double(), ids, mask, advantages, None, ref, old,
        vllm_is_ratio=ratio, **given,
    )  # fmt: skip
    assert_close(loss, expected)
    of_sequences = named.get("importance_sampling_level") == "sequence"
    if not of_sequences:
        assert_close(tuple(metrics), theirs, check_dtype=False)
    gradient, other = (torch.autograd.grad(x, logits)[0] for x in (loss, expected))
    assert_close(gradient, other)
    assert not gradient[:, -1].any()
    each, kl, clipped = triton_grpo_loss(
        logits, old, ref, ids, advantages, mask, vllm_is_ratio=ratio, **named
    )
    assert each.shape == clipped.shape == (B, L)
    assert (kl is None) == (named["beta"] == 0.0)
    if named.get("loss_type", "dapo") in ("dapo", "bnpo", "cispo", "vespo"):
        mean = each.sum() / named.get("num_items_in_batch", mask.sum())
        assert_close(mean, loss)
        assert_close(torch.autograd.grad(mean, logits)[0], gradient)
    assert not each[1, 3:].any()


def test_autograd_function():
    logits, ids, mask, advantages, old, ref = tensors()
    order = (logits, old, ref, ids, advantages, mask, 0.7, 0.1, 0.2, 0.3, True, "bnpo")
    loss, kl, clipped = GrpoLossFunction.apply(*order)
    options = {"loss_type": "bnpo", "reduce": True}
    expected, metrics = triton_grpo_loss(*order[:6], 0.7, 0.1, 0.2, 0.3, **options)
    assert_close((loss, kl, clipped), (expected, *metrics))
    assert GrpoLossFunction.apply(*order, None, False)[0].shape == (B, L)


def test_wrong_options():
    logits, ids, mask, advantages, *_ = tensors()
    for error, options in (
        (ValueError, {"loss_type": "nothing"}),
        (ValueError, {"loss_type": "sapo", "delta": 1.0}),
        (AssertionError, {"importance_sampling_level": "word"}),
    ):
        with pytest.raises(error):
            triton_grpo_loss(logits, None, None, ids, advantages, mask, beta=0.0, **options)
