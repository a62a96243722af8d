"""Statistics of logits, of existing ones and of a linear head's, for tests and benchmarks."""

from pathlib import Path

from liger_core.testing import BenchCase, OpSpec, load_module, replace
from liger_losses.linear_log_probs import linear_log_probs, linear_log_probs_ref
from liger_losses.log_probs import log_probs, log_probs_ref

ALL = ("entropy", "mean_logits", "squares", "argmax")
# numbers that fp32, in which kernels take them, holds exactly
EXTRAS = {"softcap": 5.0, "logit_scale": 0.5}


specs = load_module(Path(__file__).with_name("specs.py"))


def peak(shape, itemsize, sms, **options):
    """Logits that fitted one chunk are kept beside their gradient."""
    return specs.head_peak(shape, itemsize, sms, buffers=2 if shape[0] == 2048 else 1)


ERRORS = (
    (replace(target=lambda a: a["target"].float()), TypeError, "class indices"),
    (replace(target=lambda a: a["target"].bool()), TypeError, "int64 or int32"),
    (replace(target=lambda a: a["target"][1:]), ValueError, "must be"),
    (replace(target=lambda a: a["target"].to("meta")), ValueError, "is on"),
    (replace(statistics=lambda a: ("variance",)), ValueError, "statistics are"),
    (replace(softcap=lambda a: 0.0), ValueError, "softcap"),
    (replace(logit_scale=lambda a: -1.0), ValueError, "logit_scale"),
    (replace(input=lambda a: a["input"].long()), TypeError, "input"),
)
HEAD_SKIPS = {
    "edge_one_row": "one row is too few for eager's rounding to be a fair measure",
    "batch_invariance": "matrix products of another batch size round differently",
    "large_offsets": "its only kernels are those of log_probs",
    "bench_launches": "its only kernels are those of log_probs, which lists their shapes",
    "huge": "its only kernels are those of log_probs",
    "no_host_sync": "it reads once which tokens count; in a graph not even that",
    "cuda_graph": "a graph computes every token: test_linear_log_probs.py",
}

SPECS = [
    OpSpec(
        name="log_probs",
        op=log_probs,
        ref=log_probs_ref,
        inputs=specs.logits,
        options=({}, {"statistics": ALL}, {"statistics": ("entropy",), **EXTRAS}),
        shapes=((5, 256), (0, 64), (1, 33), (4, 63), (2, 70_001)),
        grad=("input",),
        bound=1.5,
        rows=("input", "target"),
        huge=(40_001, 65_536),
        skips={"edge_size_one": "one class has probability 1 up to rounding"},
        errors=ERRORS,
        bench=(
            BenchCase((8192, 128_256)),
            BenchCase((8192, 128_256), {"statistics": ("entropy",)}),
            BenchCase((8192, 128_256), {"statistics": ALL}),
        ),
        traffic=lambda shape, itemsize: 3 * shape[0] * shape[1] * itemsize,
        peak=lambda shape, itemsize, sms, **options: shape[0] * shape[1] * itemsize,
    ),
    OpSpec(
        name="linear_log_probs",
        op=linear_log_probs,
        ref=linear_log_probs_ref,
        inputs=specs.hidden,
        options=(
            {},
            # products that round otherwise may have another largest logit
            {"statistics": ALL[:-1], "chunk_bytes": 4096},
            {"statistics": ("entropy",), **EXTRAS},
        ),
        op_only=("chunk_bytes",),
        # rows enough that eager's rounding is a fair measure
        shapes=((40, 16, 63), (0, 8, 16), (70, 8, 100), (70, 1, 33), (3, 2, 70_001)),
        grad=("input", "linear_weight", "linear_bias"),
        rows=("input", "target"),
        bound=1.5,
        skips=HEAD_SKIPS,
        bench=(BenchCase((8192, 4096, 128_256)), BenchCase((2048, 4096, 128_256))),
        peak=peak,
        errors=(
            *ERRORS,
            (replace(linear_bias=lambda a: a["linear_bias"][1:]), ValueError, "linear_bias"),
            (
                replace(linear_weight=lambda a: a["linear_weight"].double()),
                TypeError,
                "linear_weight",
            ),
        ),
    ),
]
