"""Weights of tokens, shifted labels, metrics: the cross entropies for tests and benchmarks."""

from pathlib import Path

import torch
from liger_core.testing import BenchCase, OpSpec, load_module, replace
from liger_losses import cross_entropy, cross_entropy_with_metrics, linear_cross_entropy
from liger_losses.cross_entropy import cross_entropy_ref
from liger_losses.linear_cross_entropy import (
    linear_cross_entropy_ref,
    linear_cross_entropy_with_metrics,
)
from liger_losses.log_probs import log_probs_ref

specs = load_module(Path(__file__).with_name("specs.py"))
EXTRAS, HEAD_SKIPS = specs.EXTRAS, specs.HEAD_SKIPS
ACCUMULATED = {"normalizer": 7.0, "shift_labels": True}
PROBABILITY = {"token_weight": "probability", **EXTRAS}


def weighted(made):
    """Inputs with a weight for each token, whatever it is where no token counts."""

    def inputs(new, shape):
        found = made(new, shape)
        weight = new.uniform(shape[0], low=0.25, high=2.0)
        weight[found["target"] == -100] = float("nan")
        return {**found, "token_weight": weight}

    return inputs


def reference(loss, **arguments):
    """`loss` of weights that are 0 where no token counts."""
    weight, counts = arguments["token_weight"], arguments["target"] != -100
    return loss(**{**arguments, "token_weight": weight.where(counts, 0.0)})


def metrics_ref(input, target, **options):
    """The fields of `CrossEntropyMetrics`."""
    given = {name: options[name] for name in ("softcap", "logit_scale") if name in options}
    stats = log_probs_ref(input, target, statistics=("argmax",), **given)
    counts = target != -100
    z_loss = options.get("z_loss", 0.0) * stats.lse.square()
    if options.get("token_weight"):
        z_loss = z_loss * stats.log_probs.exp()
    count = counts.sum()
    reduction = options.get("reduction", "mean")
    if reduction != "none":
        z_loss = z_loss.sum() / (count.clamp(min=1) if reduction == "mean" else 1)
    loss = cross_entropy_ref(input, target, **options)
    accuracy = (counts & (stats.argmax == target)).sum().to(loss.dtype) / count.clamp(min=1)
    fields = z_loss, stats.log_probs, stats.lse, stats.argmax, accuracy, count
    return (loss, *(t.detach() for t in fields))


def linear_metrics_ref(input, linear_weight, target, linear_bias=None, chunk_bytes=0, **options):
    logits = torch.nn.functional.linear(input, linear_weight, linear_bias)
    return metrics_ref(logits, target, **options)


WEIGHT_ERRORS = (
    (replace(token_weight=lambda a: a["token_weight"][1:]), ValueError, "must be as target"),
    (replace(token_weight=lambda a: a["token_weight"].to("meta")), ValueError, "must be as target"),
    (
        replace(token_weight=lambda a: a["token_weight"].clone().requires_grad_()),
        ValueError,
        "detach it",
    ),
    (replace(token_weight=lambda a: "entropy"), ValueError, "or 'probability'"),
    (replace(normalizer=lambda a: 2.0, reduction=lambda a: "sum"), ValueError, "normalizer"),
)
SHIFT_ERRORS = (
    (
        replace(
            shift_labels=lambda a: True,
            input=lambda a: a["input"][0],
            target=lambda a: a["target"][0],
            token_weight=lambda a: None,
        ),
        ValueError,
        "a dimension to shift",
    ),
)
LOGITS = {
    "shapes": ((5, 256), (0, 64), (1, 33), (4, 63), (2, 70_001)),
    "grad": ("input",),
    "bound": 1.5,
    "huge": (40_001, 65_536),
}
SKIPS = {"edge_size_one": "one class has probability 1 up to rounding"}
HEAD = {
    "shapes": ((40, 16, 63), (0, 8, 16), (70, 8, 33)),
    "grad": ("input", "linear_weight", "linear_bias"),
    "bound": 2.5,
    "skips": {
        **HEAD_SKIPS,
        "edge_size_one": "linear_cross_entropy lists it",
        "edge_wide": "linear_cross_entropy lists it",
        "gradcheck": "needs a second backward; the same gradients are checked per token",
        "no_host_sync": "it reads once which tokens count; in a graph not even that",
        "cuda_graph": "a graph computes every token: test_linear_cross_entropy_graph.py",
    },
}

SPECS = [
    OpSpec(
        name="cross_entropy_token_weight",
        op=cross_entropy,
        ref=lambda **arguments: reference(cross_entropy_ref, **arguments),
        inputs=weighted(specs.logits),
        options=({}, {"reduction": "none", **EXTRAS}, ACCUMULATED),
        rows=("input", "target", "token_weight"),
        errors=(*WEIGHT_ERRORS, *SHIFT_ERRORS),
        skips=SKIPS,
        **LOGITS,
    ),
    OpSpec(
        name="cross_entropy_with_metrics",
        op=cross_entropy_with_metrics,
        ref=metrics_ref,
        inputs=specs.logits,
        options=({}, {"reduction": "none", **PROBABILITY}),
        errors=((replace(target=lambda a: a["target"][1:]), ValueError, "do not fit"),),
        skips={
            **SKIPS,
            "batch_invariance": "accuracy and count are of the batch",
            "gradcheck": "to finite differences the probability is no constant",
        },
        bench=(BenchCase((8192, 128_256)), BenchCase((8192, 32_000))),
        peak=lambda shape, itemsize, sms: shape[0] * (shape[1] * itemsize + 28),
        **LOGITS,
    ),
    OpSpec(
        name="linear_cross_entropy_token_weight",
        op=linear_cross_entropy,
        ref=lambda **arguments: reference(linear_cross_entropy_ref, **arguments),
        inputs=weighted(specs.hidden),
        options=({"chunk_bytes": 4096, **ACCUMULATED},),
        errors=WEIGHT_ERRORS,
        **HEAD,
    ),
    OpSpec(
        name="linear_cross_entropy_with_metrics",
        op=linear_cross_entropy_with_metrics,
        ref=linear_metrics_ref,
        inputs=specs.hidden,
        options=({}, {"chunk_bytes": 4096, **PROBABILITY}),
        # products in half precision may have another largest logit
        dtypes=(torch.float32,),
        errors=((replace(target=lambda a: a["target"][1:]), ValueError, "must be"),),
        **HEAD,
    ),
]
