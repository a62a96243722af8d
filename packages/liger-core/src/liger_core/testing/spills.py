"""Bytes of registers that a compiled kernel spills, read from what its compilers say."""

import os
import re
import subprocess
import tempfile
from pathlib import Path
from typing import Any

__all__ = ["SPILLS"]


def _cuda_spills(compiled: Any) -> int:
    """Bytes spilled: 0 without a stack frame, else what ptxas says."""
    import triton

    tools = Path(triton.__file__).parent / "backends/nvidia/bin"
    with tempfile.TemporaryDirectory() as folder:
        cubin, ptx = Path(folder, "k.cubin"), Path(folder, "k.ptx")
        cubin.write_bytes(compiled.asm["cubin"])
        usage = _run(tools / "cuobjdump", "--dump-resource-usage", cubin)
        frame = re.search(r"\bSTACK:(\d+)", usage)
        if not frame:
            raise RuntimeError(f"cuobjdump shows no stack size: {usage[:80]!r}")
        if frame[1] == "0":
            return 0
        ptx.write_text(compiled.asm["ptx"])
        arch = re.search(r"^\.target\s+(\w+)", compiled.asm["ptx"], re.MULTILINE)
        # which of the two accepts this PTX version differs between Triton releases
        for tool in ("ptxas", "ptxas-blackwell"):
            report = _run(
                tools / tool, "-v", f"--gpu-name={arch[1] if arch else ''}", ptx, "-o", os.devnull
            )
            spills = re.search(r"(\d+) bytes spill stores, (\d+) bytes spill loads", report)
            if spills:
                return int(spills[1]) + int(spills[2])
    raise RuntimeError(f"ptxas does not report spills; the stack has {frame[1]} bytes")


def _run(*command: Any) -> str:
    result = subprocess.run([str(c) for c in command], capture_output=True, text=True, check=False)
    return result.stdout + result.stderr


def _hip_spills(compiled: Any) -> int:
    counts = []
    for key in ("vgpr_spill_count", "private_segment_fixed_size"):
        found = re.search(rf"\.{key}:\s+(\d+)", compiled.asm["amdgcn"])
        if not found:
            raise RuntimeError(f"the assembly shows no {key}")
        counts.append(int(found[1]))
    return max(counts[0] * 4, counts[1])


SPILLS = {"cuda": _cuda_spills, "hip": _hip_spills}
