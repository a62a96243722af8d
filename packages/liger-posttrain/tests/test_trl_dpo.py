"""The losses of pairs compute what TRL's DPO, CPO and ORPO trainers compute on full logits."""

from types import SimpleNamespace

import pytest
import torch
from liger_posttrain import LinearCPOLoss, LinearDPOLoss, LinearORPOLoss, LinearSimPOLoss

pytest.importorskip("trl")
from trl import DPOTrainer
from trl.experimental.cpo import CPOTrainer
from trl.experimental.orpo import ORPOTrainer
from trl_trainers import assert_same, batch, hidden_of, tiny_llama, trainer

STATISTICS = ("entropy", "mean_logits", "argmax")
LOSSES = (
    "sigmoid", "hinge", "ipo", "nca_pair", "bco_pair", "sppo_hard", "aot", "aot_unpaired",
    "apo_zero", "apo_down", "discopop", "sigmoid_norm",
)  # fmt: skip
CASES = [
    *({"loss_type": name} for name in LOSSES),
    *(
        {"loss_type": name, "label_smoothing": 0.1}
        for name in ("exo_pair", "robust", "aot", "aot_unpaired")
    ),
    *(
        {"loss_type": name, "f_divergence_type": score, "f_alpha_divergence_coef": 0.7}
        for name in ("sigmoid", "ipo")
        for score in ("forward_kl", "js_divergence", "alpha_divergence")
    ),
    {"loss_type": ["sigmoid", "bco_pair", "sft"], "loss_weights": [0.8, 0.2, 0.5]},
    {"loss_type": "sigmoid", "ld_alpha": 0.5},
    {"loss_type": "sigmoid", "use_weighting": True},
]


def responses(rows=6):
    model, ref = tiny_llama(), tiny_llama(1)
    ids, attention, completion = batch(rows)
    return model, ref, ids, attention, completion


def ours(cls, settings, model, ids, attention, completion, **tensors):
    loss = cls(statistics=STATISTICS, **settings)
    return loss(
        hidden_of(model, ids, attention), model.lm_head.weight, ids[:, 1:],
        mask=completion[:, 1:], **tensors,
    )  # fmt: skip


def name_of(case):
    return "-".join(map(str, case.values()))


@pytest.mark.parametrize("case", CASES, ids=name_of)
def test_dpo(case):
    model, ref, ids, attention, completion = responses()
    names = case["loss_type"]
    settings = {
        "loss_types": [names] if isinstance(names, str) else names, "label_smoothing": 0.0,
        "loss_weights": case.get("loss_weights", [1.0]), "ld_alpha": None, "use_weighting": False,
        "f_divergence_type": "reverse_kl", "f_alpha_divergence_coef": 0.5, "beta": 0.1,
    } | {n: v for n, v in case.items() if not n.startswith("loss")}  # fmt: skip
    # TRL knows no float64 there
    single = settings["f_divergence_type"] == "alpha_divergence"
    made = trainer(
        DPOTrainer, model, ref, torch.float32 if single else torch.float64,
        precompute_ref_logps=False, **settings,
        args=SimpleNamespace(discopop_tau=0.05, gradient_checkpointing_kwargs=None),
    )  # fmt: skip
    inputs = {"input_ids": ids, "attention_mask": attention, "completion_mask": completion}
    theirs = made._compute_loss(made.model, inputs, False)
    if not single:
        case = {n: v for n, v in case.items() if n != "f_alpha_divergence_coef"}
    out = ours(
        LinearDPOLoss, case, model, ids, attention, completion,
        ref_input=hidden_of(ref, ids, attention), ref_weight=ref.lm_head.weight,
    )  # fmt: skip
    expected = {name: values[-1] for name, values in made._metrics["train"].items()}
    expected.pop("num_tokens")
    if settings["f_divergence_type"] != "reverse_kl":
        # ours are the rewards of the divergence
        expected = {n: v for n, v in expected.items() if not n.startswith("rewards")}
    tolerance = 1e-5 if single else 1e-6
    assert_same(out.loss, theirs, model, out.metrics, expected, tolerance)


def without_reference(cls, case, model, ids, attention, completion, **settings):
    """TRL's loss of CPO or ORPO, from its own full logits, and its metrics."""
    made = trainer(
        cls, model, model, is_encoder_decoder=False, pad_token_id=0, padding_value=0, **settings
    )
    labels = ids.masked_fill(completion == 0, -100)
    made.concatenated_inputs = lambda *_, **__: {
        "concatenated_input_ids": ids, "concatenated_attention_mask": attention,
        "concatenated_labels": labels,
    }  # fmt: skip
    loss, found = made.get_batch_loss_metrics(
        made.model, {"chosen_labels": labels[: len(labels) // 2]}
    )
    # theirs are means over prompts and padding too
    return loss, {n: v for n, v in found.items() if not n.startswith("logits")}


@pytest.mark.parametrize(
    "case",
    [
        {"loss_type": "sigmoid", "label_smoothing": 0.1},
        {"loss_type": "sigmoid", "alpha": 0.1},
        {"loss_type": "hinge"},
        {"loss_type": "ipo"},
        {"loss_type": "simpo"},
        {"loss_type": "simpo", "alpha": 0.5, "label_smoothing": 0.2, "nll_weight": 0.0},
    ],
    ids=name_of,
)
def test_cpo(case):
    model, _, ids, attention, completion = responses()
    settings = {"nll_weight": 1.0, "alpha": 0.0, "label_smoothing": 0.0} | case
    theirs, expected = without_reference(
        CPOTrainer, case, model, ids, attention, completion, beta=0.1, simpo_gamma=0.5,
        cpo_alpha=settings["nll_weight"], alpha=settings["alpha"], loss_type=case["loss_type"],
        label_smoothing=settings["label_smoothing"],
    )  # fmt: skip
    if case.get("nll_weight") == 0.0:
        expected.pop("nll_loss")
    cls = LinearCPOLoss
    if case["loss_type"] == "simpo":
        cls = LinearSimPOLoss
        case = {"nll_weight": 1.0} | {n: v for n, v in case.items() if n != "loss_type"}
    out = ours(cls, case | {"beta": 0.1}, model, ids, attention, completion)
    assert_same(out.loss, theirs, model, out.metrics, expected)


def test_orpo():
    model, _, ids, attention, completion = responses()
    theirs, expected = without_reference(
        ORPOTrainer, {}, model, ids, attention, completion, beta=0.1
    )
    out = ours(
        LinearORPOLoss, {"beta": 0.1}, model, ids, attention, completion,
        nll_target=ids.masked_fill(attention == 0, -100)[:, 1:],
    )  # fmt: skip
    # TRL computes the odds in fp32
    assert_same(out.loss, theirs, model, out.metrics, expected, 1e-5)
