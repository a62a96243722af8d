"""The ops of this package, for tests, compile checks and benchmarks."""

import torch
from liger_core.testing import BenchCase, OpSpec, replace
from liger_losses.cross_entropy import cross_entropy, cross_entropy_ref
from liger_losses.linear_cross_entropy import linear_cross_entropy, linear_cross_entropy_ref

# numbers that fp32, in which kernels take them, holds exactly
EXTRAS = {"label_smoothing": 0.125, "z_loss": 0.015625, "softcap": 5.0, "logit_scale": 0.5}


def target(new, M, V):
    """Every third token is ignored; of thousands, where memory is measured, all count."""
    labels = new.integers(V, M)
    if M < 2048:
        labels[1::3] = -100
    return labels


def logits(new, shape):
    M, V = shape
    return {"input": new.normal(M, V, std=2.0), "target": target(new, M, V)}


def weighted(new, shape):
    return {**logits(new, shape), "weight": new.uniform(shape[1], low=0.5, high=1.5)}


def hidden(new, shape):
    M, H, V = shape
    return {
        "input": new.normal(M, H),
        "linear_weight": new.normal(V, H, std=H**-0.5),
        "target": target(new, M, V),
        "linear_bias": new.normal(V),
    }


COMMON_ERRORS = (
    (replace(target=lambda a: a["target"].float()), TypeError, "class indices"),
    (replace(target=lambda a: a["target"].bool()), TypeError, "int64 or int32"),
    (replace(reduction=lambda a: "all"), ValueError, "reduction must be"),
    (replace(label_smoothing=lambda a: 1.5), ValueError, "label_smoothing"),
    (replace(softcap=lambda a: 0.0), ValueError, "softcap"),
    (replace(logit_scale=lambda a: -1.0), ValueError, "logit_scale"),
    (replace(target=lambda a: a["target"].to("meta")), ValueError, "is on"),
)

HEAD = {
    "op": linear_cross_entropy,
    "ref": linear_cross_entropy_ref,
    "inputs": hidden,
    # rows enough that eager's rounding is a fair measure
    "shapes": ((40, 16, 63), (0, 8, 16), (70, 8, 100), (70, 1, 33), (3, 2, 70_001)),
    "grad": ("input", "linear_weight", "linear_bias"),
    "rows": ("input", "target"),
    "errors": (
        *COMMON_ERRORS,
        (replace(target=lambda a: a["target"][1:]), ValueError, "must be"),
        (replace(linear_bias=lambda a: a["linear_bias"][1:]), ValueError, "linear_bias"),
        (
            replace(linear_weight=lambda a: a["linear_weight"].double()),
            TypeError,
            "linear_weight",
        ),
        (
            replace(normalizer=lambda a: 2.0, reduction=lambda a: "sum"),
            ValueError,
            "normalizer",
        ),
    ),
}


def chunk_rows(V, itemsize, chunk_bytes=None):
    """Rows of a chunk of a GPU, for a large V and M."""
    return 2048 if chunk_bytes is None else chunk_bytes // (V * itemsize) // 128 * 128


def head_peak(shape, itemsize, sms, buffers=1, chunk_bytes=None, **options):
    """C V + M H + V H elements for C rows a chunk, with one buffer of logits."""
    M, H, V = shape
    C = chunk_rows(V, itemsize, chunk_bytes)
    return (buffers * C * V + M * H + V * H) * itemsize


HEAD_SKIPS = {
    "edge_one_row": "one row is too few for eager's rounding to be a fair measure",
    "batch_invariance": "matrix products of another batch size round differently",
    "large_offsets": "its only kernels are those of cross_entropy",
    "bench_launches": "its only kernels are those of cross_entropy, which lists their shapes",
    "huge": "its only kernels are those of cross_entropy",
}

SPECS = [
    OpSpec(
        name="cross_entropy",
        op=cross_entropy,
        ref=cross_entropy_ref,
        inputs=logits,
        options=({}, {"reduction": "none"}, {"reduction": "sum", **EXTRAS}),
        shapes=((5, 256), (0, 64), (1, 33), (40, 1), (4, 63), (2, 70_001)),
        grad=("input",),
        bound=1.5,
        rows=("input", "target"),
        huge=(40_001, 65_536),
        errors=(
            *COMMON_ERRORS,
            (replace(target=lambda a: a["target"][1:]), ValueError, "do not fit"),
            (replace(input=lambda a: a["input"].long()), TypeError, "floating point"),
            (replace(weight=lambda a: a["input"][0, 1:]), ValueError, r"must be \[V\]"),
            (
                replace(inplace=lambda a: True, input=lambda a: a["input"].requires_grad_()),
                ValueError,
                "leaf",
            ),
            (
                replace(inplace=lambda a: True, reduction=lambda a: "none"),
                ValueError,
                "reduction must be",
            ),
        ),
        bench=(BenchCase((8192, 128_256)),),
        traffic=lambda shape, itemsize: 3 * shape[0] * shape[1] * itemsize,
        peak=lambda shape, itemsize, sms: shape[0] * (shape[1] * itemsize + 16),
    ),
    OpSpec(
        name="cross_entropy_inplace",
        op=cross_entropy,
        ref=cross_entropy_ref,
        inputs=logits,
        options=({"inplace": True, "z_loss": 0.015625}, {"inplace": True, "reduction": "sum"}),
        shapes=((5, 256), (0, 64), (1, 33), (40, 1), (4, 63), (2, 70_001)),
        grad=("input",),
        # half precision, where an upstream gradient rounds once more, has a test of its own
        dtypes=(torch.float32,),
        bound=1.5,
        rows=("input", "target"),
        huge=(40_001, 65_536),
        skips={"batch_invariance": "its losses are scalars"},
        errors=((replace(target=lambda a: a["target"][1:]), ValueError, "do not fit"),),
        bench=(
            BenchCase((8192, 128_256), {"inplace": True}),
            BenchCase((8192, 32_000), {"inplace": True}),
        ),
        traffic=lambda shape, itemsize: 2 * shape[0] * shape[1] * itemsize,
        peak=lambda shape, itemsize, sms, inplace: 12 * shape[0],
    ),
    OpSpec(
        name="weighted_cross_entropy",
        op=cross_entropy,
        ref=cross_entropy_ref,
        inputs=weighted,
        options=({}, {"label_smoothing": 0.25}, {"reduction": "none"}),
        shapes=((5, 256), (0, 64), (1, 33), (4, 63), (2, 70_001)),
        grad=("input",),
        bound=1.5,
        rows=("input", "target"),
        huge=(40_001, 65_536),
        skips={
            "edge_size_one": "the loss of one class is 0 up to rounding; cross_entropy lists it"
        },
        errors=((replace(weight=lambda a: a["weight"][1:]), ValueError, r"must be \[V\]"),),
    ),
    OpSpec(
        name="linear_cross_entropy",
        options=({}, {"chunk_bytes": 4096, **EXTRAS}, {"normalizer": 7.0}),
        # an upstream gradient that is no power of two rounds the gradients, formed for 1, once more
        bound=2.5,
        # the backward copies fake tensors, as in a traced graph: a small H, where it is no peak
        bench=(
            BenchCase((8192, 896, 151_936)),
            BenchCase((8192, 512, 151_936), {"chunk_bytes": 2**28}),
        ),
        peak=head_peak,
        skips={
            **HEAD_SKIPS,
            "gradcheck": "needs a second backward; the same gradients are checked per token",
            "no_host_sync": "it reads once which tokens count; in a graph not even that",
            "cuda_graph": "a graph computes every token: test_linear_cross_entropy_graph.py",
        },
        **HEAD,
    ),
    OpSpec(
        name="linear_cross_entropy_per_token",
        options=({"reduction": "none"}, {"reduction": "none", "chunk_bytes": 4096, **EXTRAS}),
        bound=2.0,
        bench=(BenchCase((8192, 4096, 128_256), {"reduction": "none"}),),
        peak=head_peak,
        skips={
            **HEAD_SKIPS,
            "no_host_sync": "it reads once which tokens count; in a graph not even that",
            "cuda_graph": "a graph computes every token: test_linear_cross_entropy_graph.py",
        },
        **HEAD,
    ),
]
