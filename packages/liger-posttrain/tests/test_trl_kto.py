"""LinearKTOLoss computes what TRL's KTO trainer computes on full logits."""

from types import SimpleNamespace

import pytest
import torch
from liger_losses import linear_log_probs
from liger_posttrain import LinearKTOLoss
from liger_posttrain.kto import kto_baseline

pytest.importorskip("trl")
from trl import KTOTrainer
from trl_trainers import assert_same, batch, hidden_of, tiny_llama, trainer


@pytest.mark.parametrize("labels", [[1, 0, 1, 1, 0], [1] * 5, [0] * 5])
@pytest.mark.parametrize("loss_type", ["kto", "apo_zero_unpaired"])
def test_kto(loss_type, labels):
    model, ref = tiny_llama(), tiny_llama(1)
    ids, attention, completion = batch(5)
    # mismatched responses
    kl_ids = torch.cat([ids[:, :3], ids.roll(1, 0)[:, 3:]], 1)
    kl_attention, kl_completion = attention.roll(1, 0), completion.roll(1, 0)
    desirable = torch.tensor(labels, dtype=torch.bool)
    made = trainer(
        KTOTrainer, model, ref, loss_type=loss_type, beta=0.1, desirable_weight=1.0,
        undesirable_weight=0.7, precompute_ref_logps=False, calculate_KL=loss_type == "kto",
        args=SimpleNamespace(gradient_checkpointing_kwargs=None),
    )  # fmt: skip
    theirs = made._compute_loss(made.model, {
        "input_ids": ids, "attention_mask": attention, "completion_mask": completion,
        "KL_input_ids": kl_ids, "KL_attention_mask": kl_attention,
        "KL_completion_mask": kl_completion, "label": desirable,
    }, False)  # fmt: skip
    expected = {name: values[-1] for name, values in made._metrics["train"].items()}
    expected.pop("num_tokens")
    baseline = None
    if loss_type == "kto":
        kl_labels = kl_ids.masked_fill(kl_completion == 0, -100)[:, 1:]
        with torch.no_grad():
            kl_logps = [
                linear_log_probs(hidden_of(m, kl_ids, kl_attention), m.lm_head.weight, kl_labels)
                .log_probs.sum(-1)
                for m in (model, ref)
            ]  # fmt: skip
        baseline = kto_baseline(*kl_logps)
    else:
        expected.pop("kl")
    out = LinearKTOLoss(
        loss_type=loss_type, undesirable_weight=0.7, statistics=("entropy", "mean_logits")
    )(
        hidden_of(model, ids, attention), model.lm_head.weight, ids[:, 1:], desirable=desirable,
        mask=completion[:, 1:], baseline=baseline, ref_input=hidden_of(ref, ids, attention),
        ref_weight=ref.lm_head.weight,
    )  # fmt: skip
    assert_same(out.loss, theirs, model, out.metrics, expected)
