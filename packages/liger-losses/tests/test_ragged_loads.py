"""Rows with room beside them are read and written 16 bytes at a time, whatever their classes."""

import importlib
import re

import pytest
from liger_core.testing.compile_check import compile_for
from liger_core.testing.interpreter import interpreting

pytest.importorskip("triton")
pytestmark = pytest.mark.skipif(interpreting(), reason="an interpreted kernel cannot be compiled")

LOSS = {"TARGET": "*i64", "LSE": "*fp32", "REST": "*fp32", "DX": "*fp16", "G": "*fp32"}
SIZES = {"stride_x": "i32", "stride_dx": "i32", "width": "i32", "V": "i32", "ignore_index": "i32"}
SCALE = {"logit_scale": "fp32"}
STATS = {k: t for k, t in LOSS.items() if k != "G"} | {"G_LOG_PROB": "*fp32"}
KERNELS = {
    "_row_loss_fwd_kernel": (
        "row_loss", LOSS | {"LOSS": "*fp32", "stride_g": "i32"},
        {"BY_PROBABILITY": False, "BLOCK_V": 8192, "PAIRS": False, "RAGGED": True}, 16,
    ),
    "_row_loss_bwd_kernel": (
        "row_loss", LOSS | {"stride_g": "i32"}, {"BLOCK_V": 4096, "RAGGED": True}, 8,
    ),
    "_row_stats_bwd_kernel": ("row_stats", STATS, {"BLOCK_V": 4096}, 8),
}  # fmt: skip


@pytest.mark.parametrize("name", KERNELS)
@pytest.mark.parametrize("room", [True, False], ids=["room", "none"])
def test_width_of_memory_accesses(name, room):
    module, given, constants, warps = KERNELS[name]
    signature = {"X": "*fp16"} | given | SIZES | SCALE
    entry = {
        "module": f"liger_losses.{module}", "name": name, "file": "", "listed": False,
        "constants": constants, "small": [], "ones": [],
        "options": {"num_warps": warps, "num_stages": 3},
    }  # fmt: skip
    kernel = getattr(importlib.import_module(entry["module"]), name)
    entry["signature"] = {n: signature.get(n, "constexpr") for n in kernel.arg_names}
    entry["constants"] = {n: constants.get(n) for n in kernel.arg_names if n not in signature}
    known = {"width", "stride_x", "stride_dx"} if room else set()
    entry["aligned"] = [n for n, t in signature.items() if t.startswith("*") or n in known]
    ptx = compile_for(entry, "sm_90").asm["ptx"]
    narrow = len(re.findall(r"(ld|st)\.global[.\w:]*\.b16", ptx))
    # the logit of the target, and its gradient
    assert narrow <= 2 if room else narrow > 16
