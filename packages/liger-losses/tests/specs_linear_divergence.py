"""The divergences between two linear heads."""

from functools import partial
from pathlib import Path

from liger_core.testing import BenchCase, OpSpec, load_module, replace
from liger_losses.linear_divergence import (
    linear_cosine,
    linear_divergence_ref,
    linear_jsd,
    linear_kl_div,
    linear_tvd,
)

specs = load_module(Path(__file__).with_name("specs.py"))


def heads(new, shape):
    """As in `specs`, every third token of a few is ignored; the teacher is half as wide again."""
    M, H, V = shape
    labels = specs.target(new, M, min(V, 9))
    K = H + H // 2
    return {
        "student_input": new.normal(M, H),
        "student_weight": new.normal(V, H, std=2 * H**-0.5),
        "teacher_input": new.normal(M, K),
        "teacher_weight": new.normal(V, K, std=2 * K**-0.5),
        "student_bias": new.normal(V),
        "teacher_bias": new.normal(V),
        "labels": labels,
    }


def listed(new, shape):
    """Five classes of the teacher for each token, one of them twice."""
    made = heads(new, shape)
    M, _, V = shape
    ids = new.integers(V, M, 5)
    ids[:, 4] = ids[:, 3]
    log_probs = new.normal(M, 5, std=2.0).log_softmax(-1)
    names = ("student_input", "student_weight", "student_bias", "labels")
    return {
        **{name: made[name] for name in names},
        "target_log_probs": log_probs,
        "target_ids": ids,
    }


def reference(kind, **arguments):
    # how the work is cut does not change its result
    arguments.pop("chunk_bytes", None)
    if arguments.pop("direction", "forward") == "reverse":
        kind = "reverse_kl"
    return linear_divergence_ref(kind=kind, **arguments)


ERRORS = (
    (replace(student_weight=lambda a: a["student_weight"][:, 1:]), ValueError, "must be"),
    (replace(teacher_weight=lambda a: a["teacher_weight"][:, 1:]), ValueError, "must be"),
    (replace(teacher_input=lambda a: a["teacher_input"][1:]), ValueError, "same tokens"),
    (replace(student_bias=lambda a: a["student_bias"][1:]), ValueError, "student_bias"),
    (replace(teacher_bias=lambda a: a["teacher_bias"][1:]), ValueError, "teacher_bias"),
    (
        replace(
            teacher_weight=lambda a: a["teacher_weight"][1:],
            teacher_bias=lambda a: a["teacher_bias"][1:],
        ),
        ValueError,
        "same tokens and V",
    ),
    (replace(student_weight=lambda a: a["student_weight"].double()), TypeError, "student_weight"),
    (replace(teacher_bias=lambda a: a["teacher_bias"].to("meta")), ValueError, "teacher_bias"),
    (replace(student_input=lambda a: a["student_input"].long()), TypeError, "floating point"),
    (replace(teacher_weight=lambda a: a["teacher_weight"].requires_grad_()), ValueError, "detach"),
    (replace(labels=lambda a: a["labels"][1:]), ValueError, "a label for each row"),
    (replace(labels=lambda a: a["labels"].float()), TypeError, "int64 or int32"),
    (replace(reduction=lambda a: "batchmean"), ValueError, "reduction must be"),
    (replace(temperature=lambda a: -1.0), ValueError, "must be positive"),
    (replace(normalizer=lambda a: 2.0, reduction=lambda a: "sum"), ValueError, "normalizer"),
)
SKIPS = {
    "edge_one_row": "one row is too few for eager's rounding to be a fair measure",
    "edge_wide": "fp32 sums over 70,000 classes test the order within the matrix product",
    "batch_invariance": "matrix products of another batch size round differently",
    "large_offsets": "its only kernels are those of jsd and its like, which are checked there",
    "bench_launches": "its only kernels are those of jsd and its like, which list their shapes",
    "huge": "its only kernels are those of jsd and its like, which are checked there",
    "no_host_sync": "it reads once which tokens count; in a graph not even that",
    "cuda_graph": "a graph computes every token: test_linear_divergence.py",
}


TOP_K_ERRORS = (
    (replace(target_ids=lambda a: a["target_ids"][1:]), ValueError, "k > 0"),
    (replace(target_ids=lambda a: a["target_ids"].float()), TypeError, "int64 or int32"),
    (replace(target_ids=lambda a: a["target_ids"].to("meta")), ValueError, "target_ids on"),
    (replace(target_ids=lambda a: None), ValueError, "give teacher_input"),
    (replace(teacher_weight=lambda a: a["student_weight"]), ValueError, "give teacher_input"),
    (replace(target_log_probs=lambda a: a["target_ids"]), TypeError, "floating point"),
    (
        replace(target_log_probs=lambda a: a["target_log_probs"].requires_grad_()),
        ValueError,
        "detach",
    ),
    (replace(direction=lambda a: "reverse"), ValueError, "give teacher_input"),
    (replace(teacher_bias=lambda a: a["student_bias"]), ValueError, "no teacher_bias"),
    (
        replace(**dict.fromkeys(("teacher_input", "teacher_weight"), lambda a: a["student_input"])),
        ValueError,
        "give teacher_input",
    ),
    (replace(labels=lambda a: a["labels"][1:]), ValueError, "a label for each row"),
)


def spec(name, op, kind, options, errors=ERRORS, inputs=heads, **rest):
    # both heads have logits, but for listed probabilities
    buffers = 1 if inputs is listed else 2
    shared = {name: value for name, value in options[-1].items() if name == "reduction"}
    return OpSpec(
        name=name,
        op=op,
        ref=partial(reference, kind),
        inputs=inputs,
        options=options,
        # rows enough that eager's rounding is a fair measure
        shapes=((24, 16, 63), (0, 8, 16), (40, 8, 100), (40, 1, 33)),
        grad=("student_input", "student_weight", "student_bias"),
        rows=("student_input",),
        errors=errors,
        bench=(BenchCase((4096, 2048, 128_256), shared),),
        peak=partial(specs.head_peak, buffers=buffers),
        **rest,
    )


def scalar(*arguments, **rest):
    skips = {
        **SKIPS,
        "gradcheck": "needs a second backward; the same gradients are checked per token",
    }
    # an upstream gradient that is no power of two rounds the gradients, formed for 1, once more
    return spec(*arguments, skips=skips, bound=2.5, **rest)


NONE, CHUNKS = {"reduction": "none"}, {"chunk_bytes": 4096}
KL_ERRORS = (*ERRORS, (replace(direction=lambda a: "both"), ValueError, "direction"))
JSD_ERRORS = (*ERRORS, (replace(beta=lambda a: -0.5), ValueError, "beta"))
# it has no temperature
COSINE_ERRORS = tuple(error for error in ERRORS if "positive" not in error[2])
REVERSE = {"direction": "reverse", "temperature": 2.0}
BETA = {"beta": 0.25, "temperature": 2.0}

SPECS = [
    scalar("linear_kl_div", linear_kl_div, "kl", ({}, {**REVERSE, **CHUNKS}), KL_ERRORS),
    spec(
        "linear_kl_div_per_token",
        linear_kl_div,
        "kl",
        ({**NONE, **CHUNKS}, {**NONE, **REVERSE}),
        skips=SKIPS,
    ),
    scalar("linear_jsd", linear_jsd, "jsd", ({"normalizer": 7.0}, {**BETA, **CHUNKS}), JSD_ERRORS),
    spec("linear_jsd_per_token", linear_jsd, "jsd", ({**NONE, **BETA, **CHUNKS},), skips=SKIPS),
    scalar("linear_tvd", linear_tvd, "tvd", ({"reduction": "sum", **CHUNKS},)),
    spec("linear_tvd_per_token", linear_tvd, "tvd", (NONE,), skips=SKIPS),
    scalar(
        "linear_kl_div_top_k",
        linear_kl_div,
        "kl",
        ({"temperature": 2.0}, {"reduction": "sum", **CHUNKS}),
        TOP_K_ERRORS,
        listed,
    ),
    spec(
        "linear_kl_div_top_k_per_token",
        linear_kl_div,
        "kl",
        ({**NONE, **CHUNKS},),
        TOP_K_ERRORS,
        listed,
        skips=SKIPS,
    ),
    scalar(
        "linear_cosine",
        linear_cosine,
        "cosine",
        ({}, {"reduction": "sum", **CHUNKS}),
        COSINE_ERRORS,
    ),
    spec(
        "linear_cosine_per_token",
        linear_cosine,
        "cosine",
        ({**NONE, **CHUNKS},),
        COSINE_ERRORS,
        skips=SKIPS,
    ),
]
