"""The chunked losses beside formulas on full logits: losses, gradients, returned metrics."""

import inspect

import chunked_formulas as formulas
import pytest
import torch
import torch.nn.functional as F
from liger_kernel import chunked_loss
from liger_kernel.chunked_loss import functional
from torch.testing import assert_close

N, T, H, V = 2, 5, 4, 13


def normal(*shape):
    return torch.randn(*shape, dtype=torch.float64)


def head():
    """Hidden states, weight and bias with gradients, and targets of prompts and padding."""
    torch.manual_seed(0)
    target = torch.randint(0, V, (2 * N, T))
    target[:, :2] = -100
    target[1, 4:] = -100
    x, w, b = (t.requires_grad_() for t in (normal(2 * N, T, H), normal(V, H), normal(V)))
    return x, w, target, b


def reference():
    return normal(2 * N, T, 3), normal(V, 3), normal(V)


def check(actual, expected, leaves):
    assert_close(actual, expected, rtol=1e-6, atol=1e-8, check_dtype=False)
    ours, theirs = (out[0] if isinstance(out, tuple) else out for out in (actual, expected))
    assert_close(
        torch.autograd.grad(3 * ours, leaves),
        torch.autograd.grad(3 * theirs, leaves, retain_graph=True), rtol=1e-6, atol=1e-8,
    )  # fmt: skip


def pair(c, r):
    """The losses by name, of rewards of a chosen and a rejected response."""
    ls, s, d = F.logsigmoid, torch.sigmoid, c - r
    return {
        "sigmoid": -ls(d),
        "hinge": torch.relu(1 - d),
        "ipo": None,
        "nca_pair": -ls(c) - 0.5 * ls(-c) - 0.5 * ls(-r),
        "robust": -(0.9 * ls(d) - 0.1 * ls(-d)) / 0.8,
        "exo_pair": s(d) * (ls(d) - torch.tensor(0.9).double().log())
        + s(-d) * (ls(-d) - torch.tensor(0.1).double().log()),
        "bco_pair": -ls(c) - ls(-r),
        "sppo_hard": (c / 0.2 - 2.5).square() + (r / 0.2 + 2.5).square(),
        "apo_zero": 1 - s(c) + s(r),
        "apo_down": s(c) + 1 - s(d),
        "discopop": -ls(d) * (1 - s(d / 0.05)) + (-d).exp() * s(d / 0.05),
    }


@pytest.mark.parametrize("loss_type", [n for n in pair(torch.ones(1), torch.ones(1)) if n != "ipo"])
def test_dpo(loss_type):
    x, w, t, b = head()
    ref = reference()
    smoothing = 0.1 if loss_type in ("robust", "exo_pair") else 0.0
    loss = chunked_loss.LigerFusedLinearDPOLoss(
        beta=0.2, loss_type=loss_type, label_smoothing=smoothing, chunk_size=2
    )
    expected = formulas.pairs(lambda *c: pair(*c)[loss_type], x, w, t, b, ref, beta=0.2)
    check(loss(w, x, t, b, *ref), expected, (x, w, b))


def test_dpo_without_a_reference_and_with_a_likelihood():
    x, w, t, _ = head()
    loss = chunked_loss.LigerFusedLinearDPOLoss(
        compute_nll_loss=True, alpha=0.3, use_ref_model=False, average_log_prob=True, compiled=False
    )
    expected = formulas.pairs(formulas.sigmoid, x, w, t, beta=0.1, nll=0.3, averaged=True)
    check(loss(w, x, t, ref_input=x), expected, (x, w))
    chunked_loss.LigerFusedLinearDPOLoss(loss_type="ipo", use_ref_model=False)(w, x, t)
    with pytest.raises(ValueError, match="loss_type"):
        chunked_loss.LigerFusedLinearDPOLoss(loss_type="nothing")


@pytest.mark.parametrize("averaged", [True, False])
def test_cpo(averaged):
    x, w, t, b = head()
    loss = chunked_loss.LigerFusedLinearCPOLoss(
        beta=0.2, alpha=0.5, label_smoothing=0.1, average_log_prob=averaged
    )
    expected = formulas.pairs(
        lambda *c: formulas.sigmoid(*c, 0.1), x, w, t, b, beta=0.2, nll=0.5, averaged=averaged
    )
    check(loss(w, x, t, b), expected, (x, w, b))


def test_simpo():
    x, w, t, b = head()
    loss = chunked_loss.LigerFusedLinearSimPOLoss(beta=2.0, gamma=0.3, label_smoothing=0.1)
    expected = formulas.pairs(
        lambda *c: formulas.sigmoid(*c, 0.1, 0.3), x, w, t, b, beta=2.0, nll=1.0, averaged=True
    )
    check(loss(w, x, t, b), expected, (x, w, b))


def test_orpo():
    x, w, t, b = head()
    nll_target = torch.randint(0, V, t.shape).where(t == -100, t)
    expected = formulas.pairs(
        lambda c, r: -0.2 * F.logsigmoid(formulas.odds(c / 0.2, r / 0.2)),
        x, w, t, b, beta=0.2, nll=1.0, averaged=True, nll_target=nll_target,
    )  # fmt: skip
    log_odds = formulas.odds(*expected[1][:2])
    more = (F.logsigmoid(log_odds).mean(), log_odds.mean())
    loss = chunked_loss.LigerFusedLinearORPOLoss(beta=0.2)
    check(loss(w, x, t, b, nll_target), (expected[0], expected[1] + more), (x, w, b))
    plain = chunked_loss.LigerFusedLinearORPOLoss(compute_nll_loss=False)(w, x, t)
    assert plain[1][4] == 0


@pytest.mark.parametrize("kl", [None, torch.tensor([0.3], dtype=torch.float64)])
@pytest.mark.parametrize("use_ref_model", [True, False])
def test_kto(kl, use_ref_model):
    x, w, t, b = head()
    ref = reference()
    desirable = torch.tensor([True, False, True, True])
    expected = formulas.kto(
        x, w, t, desirable, b, ref if use_ref_model else None, 0.0 if kl is None else kl, beta=0.2
    )
    loss = chunked_loss.LigerFusedLinearKTOLoss(beta=0.2, use_ref_model=use_ref_model)
    actual = loss(
        _input=x, lin_weight=w, target=t, bias=b, preference_labels=desirable, ref_input=ref[0],
        ref_weight=ref[1], ref_bias=ref[2], kl=kl,
    )  # fmt: skip
    check(actual, expected, (x, w, b))
    with pytest.raises(AssertionError):
        loss(x, w, t)
    with pytest.raises(ValueError, match="one number"):
        loss(x, w, t, None, desirable, kl=torch.ones(4))


GRPO = [
    {}, {"beta": 0.0}, {"loss_type": "grpo"}, {"loss_type": "bnpo", "delta": 1.1},
    {"loss_type": "dr_grpo", "max_completion_length": 7},
    {"loss_type": "grpo", "importance_sampling_level": "sequence", "epsilon_high": 0.05},
    {"loss_type": "luspo", "importance_sampling_level": "sequence", "beta": 0.0},
    {"loss_type": "cispo", "epsilon_high": 1.01},
    {"loss_type": "sapo", "sapo_temperature_pos": 0.9, "sapo_temperature_neg": 1.2},
    {"temperature": 0.7, "use_bias_correction_kl": True},
]  # fmt: skip
NAMES = {
    "loss_type": "kind", "importance_sampling_level": "level", "epsilon_high": "high",
    "max_completion_length": "length", "use_bias_correction_kl": "corrected",
}  # fmt: skip


@pytest.mark.parametrize("options", GRPO, ids=str)
def test_grpo(options):
    x, w, t, b = head()
    mask, ids = (t != -100).long(), t.clamp(min=0)
    advantages = torch.tensor([1.0, -0.5, 0.3, -1.2], dtype=torch.float64)
    old, ref = (-normal(2 * N, T).abs() - 2 for _ in range(2))
    ratio = torch.rand(2 * N, 1).double()
    beta = options.get("beta", 0.04)
    named = {NAMES.get(n, n): v for n, v in options.items() if not n.startswith("sapo")}
    if "sapo_temperature_pos" in options:
        named["tau"] = (0.9, 1.2)
    expected = formulas.grpo(
        x, w, ids, mask, advantages, b, ref if beta else None, old, ratio=ratio, **named
    )
    loss = chunked_loss.LigerFusedLinearGRPOLoss(use_ref_model=beta != 0.0, **options)
    actual = loss(
        _input=x, lin_weight=w, selected_token_ids=ids, attention_mask=mask, advantages=advantages,
        bias=b, old_per_token_logps=old, ref_per_token_logps=ref, vllm_is_ratio=ratio,
    )  # fmt: skip
    check(actual, expected, (x, w, b))


def test_grpo_normalizers_references_and_vespo():
    x, w, t, _ = head()
    mask, ids, advantages = (t != -100).long(), t.clamp(min=0), normal(2 * N)
    loss = chunked_loss.LigerFusedLinearGRPOLoss(beta=0.0, use_ref_model=False)
    expected = formulas.grpo(x, w, ids, mask, advantages, beta=0.0, items=40)
    for items in (40, torch.tensor(40)):
        actual = loss(x, w, ids, mask, advantages, num_items_in_batch=items)
        check(actual, expected, (x, w))
    ref_x, ref_w, ref_b = reference()
    ref = F.linear(ref_x, ref_w, ref_b).log_softmax(-1).gather(-1, ids[..., None])[..., 0]
    expected = formulas.grpo(x, w, ids, mask, advantages, None, ref)
    loss = chunked_loss.LigerFusedLinearGRPOLoss()
    check(
        loss(x, w, ids, mask, advantages, None, None, None, ref_x, ref_w, ref_b), expected, (x, w)
    )
    # a KL from the policy itself
    loss = chunked_loss.LigerFusedLinearGRPOLoss(use_ref_model=False)
    check(loss(x, w, ids, mask, advantages), formulas.grpo(x, w, ids, mask, advantages), (x, w))
    # where the ratio is 1 VESPO's weight is 1
    vespo = chunked_loss.LigerFusedLinearGRPOLoss(0.0, use_ref_model=False, loss_type="vespo")
    logp = F.linear(x, w).log_softmax(-1).gather(-1, ids[..., None])[..., 0]
    plain = -(logp * advantages[:, None] * mask).sum() / mask.sum()
    check(vespo(x, w, ids, mask, advantages), (plain, (torch.zeros(()),)), (x, w))


def test_wrong_options_of_grpo_raise():
    x, w, t, _ = head()
    mask, ids, advantages = (t != -100).long(), t.clamp(min=0), normal(2 * N)

    def call(**options):
        chunked_loss.LigerFusedLinearGRPOLoss(**options)(x, w, ids, mask, advantages)

    plain = {"beta": 0.0, "use_ref_model": False}
    for error, options in (
        (AssertionError, {}),
        (AssertionError, {**plain, "loss_type": "dr_grpo"}),
        (ValueError, {**plain, "loss_type": "nothing"}),
        (ValueError, {**plain, "importance_sampling_level": "word"}),
        (ValueError, {**plain, "loss_type": "cispo", "importance_sampling_level": "sequence"}),
        (ValueError, {**plain, "loss_type": "sapo", "sapo_temperature_pos": 0.0}),
    ):
        with pytest.raises(error):
            call(**options)


def cosine(z, y):
    return 1 - F.cosine_similarity(z, y, dim=-1)


@pytest.mark.parametrize("classes", [V, V + 3])
@pytest.mark.parametrize(
    ("name", "soft", "options"),
    [
        ("JSD", formulas.jsd, {}),
        ("JSD", lambda z, y: formulas.jsd(z, y, 0.0), {"beta": 0.0, "weight_hard_loss": 0.0}),
        ("JSD", lambda z, y: formulas.jsd(z, y, 1.0), {"beta": 1.0, "temperature": 2.0}),
        ("CosineSimilarity", lambda z, y: 0.5 * cosine(z, y), {}),
        ("CosineSimilarity", lambda z, y: 0.9 * cosine(z, y), {"beta": 0.9, "temperature": 2.0}),
    ],
)
def test_distillation(name, soft, options, classes):
    x, w, t, b = head()
    x, t = x.detach().flatten(0, 1).requires_grad_(), t.flatten()
    y, v, c = normal(len(t), 3), normal(classes, 3), normal(classes)
    named = {"hard": options.get("weight_hard_loss", 0.5)}
    named["temperature"] = options.get("temperature", 1.0) if name == "JSD" else 1.0
    expected = formulas.distillation(soft, x, w, y, v, t, b, c, **named)
    loss = getattr(chunked_loss, f"LigerFusedLinear{name}Loss")
    check(loss(**options)(x, w, y, v, t, b, c), expected[0], (x, w, b))
    parts = loss(return_soft_hard_loss=True, chunk_size=4, compiled=False, **options)
    actual = parts(
        student_input=x, student_weight=w, teacher_input=y, teacher_weight=v, true_labels=t,
        student_bias=b, teacher_bias=c,
    )  # fmt: skip
    expected = formulas.distillation(soft, x, w, y, v, t, b, c, **named)
    check(actual, expected, (x, w, b))


def test_functions_take_the_positions_of_the_modules_functions():
    names = ("orpo", "dpo", "jsd", "cosine", "cpo", "simpo", "kto", "grpo")
    functions = {name: getattr(functional, f"liger_fused_linear_{name}") for name in names}
    for name, function in functions.items():
        first = list(inspect.signature(function).parameters)[:2]
        pair = ["student_input", "student_weight"] if name in ("jsd", "cosine") else [
            "_input", "weight"]  # fmt: skip
        assert first == pair
    x, w, t, _ = head()
    ref_x, ref_w, _ = reference()
    by_position = functions["dpo"](x, w, t, None, ref_x, ref_w, None, -100, 0.2, True, False, True)
    module = chunked_loss.LigerFusedLinearDPOLoss(beta=0.2, compute_nll_loss=True)
    assert_close(by_position, module(w, x, t, None, ref_x, ref_w))


def test_base_classes_can_be_imported_and_say_what_to_do():
    from liger_kernel.chunked_loss.fused_linear_distillation import LigerFusedLinearDistillationBase

    with pytest.raises(NotImplementedError, match="liger-posttrain"):
        LigerFusedLinearDistillationBase.apply()
