"""The divergences between rows that exist."""

from functools import partial

import torch
from liger_core.testing import BenchCase, OpSpec, replace
from liger_losses.divergence import divergence_ref, jsd, kl_div, tvd

SHAPES = ((5, 256), (0, 64), (1, 33), (40, 1), (4, 63), (2, 70_001))
# numbers that fp32, in which kernels take them, holds exactly
LOGITS = {"from_logits": True, "temperature": 2.0}


def labels(new, M):
    """Every third row does not count."""
    found = new.integers(9, M)
    found[1::3] = -100
    return found


def logits(new, shape):
    M, V = shape
    return {
        "input": new.normal(M, V, std=2.0),
        "target": new.normal(M, V, std=2.0),
        "labels": labels(new, M),
    }


def log_probs(new, shape):
    made = logits(new, shape)
    for name in ("input", "target"):
        made[name] = made[name].log_softmax(-1)
    return made


def probabilities(new, shape):
    made = log_probs(new, shape)
    return {**made, "target": made["target"].exp()}


def reference(kind, input, target, labels=None, **options):
    """`divergence_ref` reduced as its op does."""
    reduction, normalizer = options.pop("reduction", "mean"), options.pop("normalizer", None)
    if "direction" in options and options.pop("direction") == "reverse":
        kind = "reverse_kl"
    if kind in ("kl", "reverse_kl"):
        log_target = options.pop("log_target", False) or options.get("from_logits", False)
        options["log_target"] = log_target
    loss = divergence_ref(input, target, labels, kind=kind, **options)
    rows = loss.sum(-1)
    if reduction == "none":
        return loss if "kl" in kind else rows
    if reduction == "row":
        return rows
    if reduction == "sum":
        return rows.sum()
    count = len(rows) if labels is None else (labels != -100).sum()
    count = max(int(count), 1) * (loss.shape[-1] if (kind[-2:], reduction) == ("kl", "mean") else 1)
    return rows.sum() / (count if normalizer is None else normalizer)


ERRORS = (
    (replace(target=lambda a: a["target"][1:]), ValueError, "must both be"),
    (replace(target=lambda a: a["target"].long()), TypeError, "floating point"),
    (replace(target=lambda a: a["target"].to("meta")), ValueError, "is on"),
    (replace(target=lambda a: a["target"].requires_grad_()), ValueError, "detach"),
    (replace(labels=lambda a: a["labels"][1:]), ValueError, "a label for each row"),
    (replace(labels=lambda a: a["labels"].float()), TypeError, "int64 or int32"),
    (replace(labels=lambda a: a["labels"].to("meta")), ValueError, "labels on"),
    (replace(reduction=lambda a: "all"), ValueError, "reduction must be"),
    (replace(temperature=lambda a: 0.0), ValueError, "must be positive"),
    (replace(temperature=lambda a: 2.0, from_logits=lambda a: False), ValueError, "from_logits"),
    (replace(normalizer=lambda a: 2.0, reduction=lambda a: "sum"), ValueError, "normalizer"),
)
BENCH = (4096, 128_256)


def row(name, op, kind, inputs, options, errors=ERRORS, **rest):
    """A spec of losses of rows, whose gradient is formed in the backward."""
    rest.setdefault("mixed", ({"input": torch.bfloat16}, {"target": torch.bfloat16}))
    return OpSpec(
        name=name,
        op=op,
        ref=partial(reference, kind),
        inputs=inputs,
        options=options,
        shapes=SHAPES,
        grad=("input",),
        bound=1.5,
        rows=("input", "target", "labels"),
        huge=(40_001, 65_536),
        errors=errors,
        **rest,
    )


def scalar(name, op, kind, inputs, options, **rest):
    """A spec of scalars, whose gradient is formed in the forward."""
    return row(
        name,
        op,
        kind,
        inputs,
        options,
        # half precision, where an upstream gradient rounds once more, has a test of its own
        dtypes=(torch.float32,),
        mixed=({"target": torch.bfloat16},),
        skips={
            "batch_invariance": "its losses are scalars; those of rows are checked",
            "gradcheck": "needs a second backward; the same gradients are checked per row",
        },
        bench=(BenchCase(BENCH, options[0]),),
        traffic=lambda shape, itemsize: 3 * shape[0] * shape[1] * itemsize,
        peak=lambda shape, itemsize, sms, **options: shape[0] * (shape[1] * itemsize + 4),
        **rest,
    )


KL_ERRORS = (
    *ERRORS,
    (replace(direction=lambda a: "both"), ValueError, "direction"),
    (replace(log_target=lambda a: True, from_logits=lambda a: True), ValueError, "log_target"),
    (
        replace(
            reduction=lambda a: "batchmean",
            **{n: (lambda a, n=n: a[n][None]) for n in ("input", "target", "labels")},
        ),
        ValueError,
        "batchmean with labels",
    ),
)
REVERSE = {"direction": "reverse"}
ROW, NONE = {"reduction": "row"}, {"reduction": "none"}
LOG_TARGET = {**ROW, "log_target": True}
LOGIT_ROWS, LOGIT_NONE = {**ROW, **LOGITS}, {**NONE, **LOGITS}
BETA_ERRORS = (*ERRORS, (replace(beta=lambda a: 1.5), ValueError, "beta"))

SPECS = [
    scalar("kl_div", kl_div, "kl", probabilities, ({}, {"reduction": "batchmean", **REVERSE})),
    scalar("kl_div_from_logits", kl_div, "kl", logits, (LOGITS, {**LOGITS, **REVERSE})),
    row("kl_div_rows", kl_div, "kl", probabilities, (ROW, {**ROW, **REVERSE}), KL_ERRORS),
    row("kl_div_log_target", kl_div, "kl", log_probs, (LOG_TARGET, {**LOG_TARGET, **REVERSE})),
    row("kl_div_logit_rows", kl_div, "kl", logits, (LOGIT_ROWS, {**LOGIT_ROWS, **REVERSE})),
    scalar("jsd", jsd, "jsd", log_probs, ({}, {"beta": 0.25, "reduction": "sum"})),
    scalar("jsd_from_logits", jsd, "jsd", logits, (LOGITS, {"normalizer": 7.0, **LOGITS})),
    row("jsd_rows", jsd, "jsd", log_probs, ({**NONE, "beta": 0.25}, NONE), BETA_ERRORS),
    row("jsd_logit_rows", jsd, "jsd", logits, (LOGIT_NONE, {**LOGIT_NONE, "beta": 0.0})),
    scalar("tvd", tvd, "tvd", log_probs, ({},)),
    scalar("tvd_from_logits", tvd, "tvd", logits, (LOGITS, {"reduction": "sum", **LOGITS})),
    row("tvd_rows", tvd, "tvd", log_probs, (NONE,)),
    row("tvd_logit_rows", tvd, "tvd", logits, (LOGIT_NONE,)),
]
