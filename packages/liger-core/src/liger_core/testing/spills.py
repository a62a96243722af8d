"""Bytes of registers that a kernel spills, as its compilers say."""

import contextlib
import io
import re
from collections.abc import Iterator
from typing import Any

__all__ = ["SPILLS", "compiler_log"]


@contextlib.contextmanager
def compiler_log() -> Iterator[io.StringIO]:
    """What ptxas says of the kernels that Triton compiles inside, all of which it does anew.

    Another run of ptxas would need the options of that one, which change from release to release
    and change what is spilled.
    """
    from triton import knobs

    log = io.StringIO()
    with knobs.nvidia.scope(), knobs.compilation.scope(), contextlib.redirect_stdout(log):
        knobs.nvidia.dump_ptxas_log = True
        knobs.compilation.always_compile = True
        yield log


def _cuda_spills(compiled: Any, log: str) -> int:
    found = re.findall(r"(\d+) bytes spill stores, (\d+) bytes spill loads", log)
    if not found:
        raise RuntimeError(f"ptxas does not report spills: {log[:80]!r}")
    return sum(int(stores) + int(loads) for stores, loads in found)


def _hip_spills(compiled: Any, log: str) -> int:
    counts = []
    for key in ("vgpr_spill_count", "private_segment_fixed_size"):
        found = re.search(rf"\.{key}:\s+(\d+)", compiled.asm["amdgcn"])
        if not found:
            raise RuntimeError(f"the assembly shows no {key}")
        counts.append(int(found[1]))
    return max(counts[0] * 4, counts[1])


SPILLS = {"cuda": _cuda_spills, "hip": _hip_spills}
