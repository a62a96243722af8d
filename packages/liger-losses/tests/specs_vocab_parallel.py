"""Cross entropy over a sharded vocabulary, on a single rank; test_vocab_parallel.py has two."""

from liger_core.testing import BenchCase, OpSpec, replace
from liger_losses.linear_cross_entropy import linear_cross_entropy_ref
from liger_losses.vocab_parallel_cross_entropy import (
    vocab_parallel_cross_entropy,
    vocab_parallel_cross_entropy_ref,
)
from liger_losses.vocab_parallel_linear_cross_entropy import vocab_parallel_linear_cross_entropy

# numbers that fp32, in which kernels take them, holds exactly
EXTRAS = {"label_smoothing": 0.125, "z_loss": 0.015625, "softcap": 5.0, "logit_scale": 0.5}


def target(new, *shape, V):
    """Every third token is ignored."""
    labels = new.integers(V, *shape)
    labels.view(-1)[1::3] = -100
    return labels


def logits(new, shape):
    *rows, V = shape
    return {"input": new.normal(*rows, V, std=2.0), "target": target(new, *rows, V=V)}


def hidden(new, shape):
    M, H, V = shape
    return {
        "input": new.normal(M, H),
        "linear_weight": new.normal(V, H, std=H**-0.5),
        "target": target(new, M, V=V),
        "linear_bias": new.normal(V),
    }


ERRORS = (
    (replace(target=lambda a: a["target"].float()), TypeError, "class indices"),
    (replace(target=lambda a: a["target"][1:]), ValueError, "must be"),
    (replace(reduction=lambda a: "all"), ValueError, "reduction must be"),
    (replace(label_smoothing=lambda a: 1.5), ValueError, "label_smoothing"),
    (replace(normalizer=lambda a: 2.0, reduction=lambda a: "sum"), ValueError, "normalizer"),
    (replace(vocab_start=lambda a: 0), ValueError, "come together"),
    (replace(vocab_start=lambda a: 0, vocab_size=lambda a: 9999), ValueError, "no shard of"),
    (replace(group=lambda a: "tp"), ValueError, "not initialised"),
)

SPECS = [
    OpSpec(
        name="vocab_parallel_cross_entropy",
        op=vocab_parallel_cross_entropy,
        ref=vocab_parallel_cross_entropy_ref,
        inputs=logits,
        options=({}, {"reduction": "none", **EXTRAS}, {"normalizer": 7.0}),
        shapes=((5, 256), (0, 64), (1, 33), (40, 1), (2, 2, 63), (2, 70_001)),
        grad=("input",),
        bound=1.5,
        rows=("input", "target"),
        huge=(40_001, 65_536),
        errors=(
            *ERRORS,
            (replace(input=lambda a: a["input"].long()), TypeError, "floating point"),
        ),
        bench=(
            BenchCase((8192, 16_032)),
            BenchCase((8192, 128_256), {"label_smoothing": 0.125}),
        ),
        traffic=lambda shape, itemsize: 3 * shape[0] * shape[1] * itemsize,
        peak=lambda shape, itemsize, sms, **options: shape[0] * shape[1] * itemsize,
    ),
    OpSpec(
        name="vocab_parallel_linear_cross_entropy",
        op=vocab_parallel_linear_cross_entropy,
        ref=linear_cross_entropy_ref,
        inputs=hidden,
        options=({"reduction": "none"}, {"chunk_bytes": 4096, **EXTRAS}),
        # rows enough that eager's rounding is a fair measure
        shapes=((40, 16, 63), (0, 8, 16), (70, 1, 33)),
        grad=("input", "linear_weight", "linear_bias"),
        rows=("input", "target"),
        # an upstream gradient that is no power of two rounds the gradients, formed for 1, once more
        bound=2.5,
        skips={
            "gradcheck": "needs a second backward; the same gradients are checked of logits",
            "edge_one_row": "one row is too few for eager's rounding to be a fair measure",
            "edge_wide": "vocab_parallel_cross_entropy lists it",
            "batch_invariance": "matrix products of another batch size round differently",
            "large_offsets": "its only kernels are those of vocab_parallel_cross_entropy",
            "bench_launches": "its only kernels are those of vocab_parallel_cross_entropy",
            "huge": "its only kernels are those of vocab_parallel_cross_entropy",
            "no_host_sync": "it reads once which tokens count; in a graph not even that",
            "cuda_graph": "a graph computes every token: test_vocab_parallel.py",
            "compile": "its graph breaks: test_vocab_parallel.py",
            "compile_cpu": "its graph breaks: test_vocab_parallel.py",
            "compile_traces_kernels": "its graph breaks: test_vocab_parallel.py",
            "compile_traces_dynamic_shapes": "its graph breaks: test_vocab_parallel.py",
        },
        errors=(
            *ERRORS,
            (replace(linear_bias=lambda a: a["linear_bias"][1:]), ValueError, "linear_bias"),
        ),
    ),
]
