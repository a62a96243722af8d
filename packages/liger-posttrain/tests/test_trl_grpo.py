"""LinearGRPOLoss computes what TRL's GRPO trainer computes on full logits."""

from types import SimpleNamespace

import pytest
import torch
from liger_posttrain import LinearGRPOLoss

pytest.importorskip("trl")
from trl import GRPOTrainer
from trl_trainers import Alone, assert_same, batch, hidden_of, tiny_llama, trainer

PROMPT = 3
# ours -> (what differs from the trainer's defaults in the trainer, in ours)
CLIP = {"epsilon_low": 0.2, "epsilon_high": 0.3}
CASES = {
    "grpo": ({}, CLIP),
    "bnpo": ({}, CLIP),
    "dr_grpo": ({}, CLIP),
    "dapo": ({}, CLIP),
    "luspo": ({"importance_sampling_level": "sequence"}, CLIP),
    "cispo": ({}, {"epsilon_high": 0.3}),
    # TRL has it in fp32
    "sapo": ({"sapo_temperature_neg": 1.0625}, {"tau_neg": 1.0625}),
    "vespo": ({}, {}),
}
VARIANTS = {
    "plain": ({}, {}),
    "kl": ({"beta": 0.1}, {"beta": 0.1}),
    "corrected kl": (
        {"beta": 0.1, "use_bias_correction_kl": True},
        {"beta": 0.1, "use_bias_correction_kl": True},
    ),
    "sequence": ({"importance_sampling_level": "sequence"},) * 2,
    "high entropy": ({"top_entropy_quantile": 0.45, "entropy_coef": 0.1},) * 2,
    "off policy": ({"off_policy_mask_threshold": 0.05},) * 2,
    "sampler": ({"use_vllm": True}, {}),
    "on policy": ({}, {}),
}


class Trainer(GRPOTrainer):
    def _get_per_token_logps_and_entropies(self, model, ids, mask, keep, **_):
        out = model(ids, mask, labels=ids, fused_lm_head=True)
        return out.log_probs[:, -keep:], out.entropy[:, -keep:], None


def trl_loss(model, ref, inputs, loss_type, settings):
    args = {
        "delta": None, "use_bias_correction_kl": False, "sapo_temperature_pos": 1.0,
        "sapo_temperature_neg": 1.05, "vespo_k_pos": 2.0, "vespo_lambda_pos": 3.0,
        "vespo_k_neg": 3.0, "vespo_lambda_neg": 2.0, "steps_per_generation": 1,
    }  # fmt: skip
    chosen = {
        "loss_type": loss_type, "beta": 0.0, "epsilon_low": 0.2, "epsilon_high": 0.3,
        "importance_sampling_level": "token", "max_completion_length": 6, "entropy_coef": 0.0,
        "top_entropy_quantile": 1.0, "off_policy_mask_threshold": None, "use_vllm": False,
    } | {n: v for n, v in settings.items() if n not in args}  # fmt: skip
    made = trainer(
        Trainer, model, ref, **chosen, current_gradient_accumulation_steps=1,
        vllm_importance_sampling_correction=True, use_adaptive_entropy=False,
        _entropy_bonus_enabled=chosen["entropy_coef"] != 0.0, accelerator=Alone(),
        args=SimpleNamespace(**(args | {n: v for n, v in settings.items() if n in args})),
    )  # fmt: skip
    loss = made._compute_loss(made.model, inputs)
    return loss, {name: values[-1] for name, values in made._metrics["train"].items()}


@pytest.mark.parametrize(
    ("loss_type", "variant"),
    [
        *((loss_type, variant) for loss_type in CASES for variant in ("kl", "on policy")),
        *(("grpo", variant) for variant in VARIANTS if variant not in ("kl", "on policy")),
        ("dapo", "sequence"),
        ("luspo", "high entropy"),
        ("vespo", "sampler"),
        ("vespo", "off policy"),
    ],
)
def test_trl(loss_type, variant):
    model, ref = tiny_llama(), tiny_llama(1)
    ids, attention, _ = batch(4)
    completion, mask = ids[:, PROMPT:], attention[:, PROMPT:]
    generator = torch.Generator().manual_seed(2)
    hidden = hidden_of(model, ids, attention)[:, PROMPT - 1 :]
    weight = model.lm_head.weight
    log_p = (hidden @ weight.t()).log_softmax(-1).detach()
    log_p = log_p.gather(-1, completion[..., None])[..., 0]
    noise = torch.randn(log_p.shape, generator=generator, dtype=log_p.dtype)
    old = None if variant == "on policy" else log_p + 0.3 * noise
    ref_log_probs = log_p - 0.2 * noise
    ratio = (0.5 * noise * mask).exp() if variant == "sampler" else None
    advantages = torch.tensor([1.0, -0.5, -1.5, 0.7], dtype=torch.float64)
    in_trl, in_ours = ({**a, **b} for a, b in zip(CASES[loss_type], VARIANTS[variant], strict=True))
    theirs, expected = trl_loss(model, ref, {
        "prompt_ids": ids[:, :PROMPT], "prompt_mask": attention[:, :PROMPT],
        "completion_ids": completion, "completion_mask": mask, "advantages": advantages,
        "old_per_token_logps": old, "ref_per_token_logps": ref_log_probs,
        "num_items_in_batch": mask.sum(), "importance_sampling_ratio": ratio,
    }, loss_type, in_trl)  # fmt: skip
    ours = LinearGRPOLoss(
        loss_type=loss_type, max_completion_length=6, statistics=("entropy",), **in_ours
    )(
        hidden, weight, completion, mask=mask, advantages=advantages, old_log_probs=old,
        ref_log_probs=ref_log_probs, importance_sampling_ratio=ratio,
    )  # fmt: skip
    expected.pop("policy_loss", None), expected.pop("entropy_coef", None)
    assert_same(ours.loss, theirs, model, ours.metrics, expected)
