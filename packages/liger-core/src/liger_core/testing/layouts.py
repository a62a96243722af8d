"""Findings in a kernel's Triton GPU IR: tensors that few threads hold, many elements each.

Triton gives a tensor the layout of what it was made from. A few numbers that were reduced from a
small tensor take its layout along when they meet a tile, and with that a thread may get the whole
tile: right, and ten times slower.
"""

import math
import re

__all__ = ["crowded"]

_BLOCKED = re.compile(
    r"^(#\w+) = #ttg\.blocked<\{sizePerThread = \[([\d, ]+)\], threadsPerWarp = \[([\d, ]+)\], "
    r"warpsPerCTA = \[([\d, ]+)\]",
    re.MULTILINE,
)
_TENSOR = re.compile(r"tensor<((?:\d+x)+)[^,<>]*(?:<[^<>]*>)?, (#\w+)>")
# elements of a thread: that many are a finding, if they are so many times its share
_MANY, _TIMES = 128, 8


def crowded(ttgir: str) -> list[str]:
    """Tensors of which a thread holds 128 elements or more, and eight times its share or more.

    Raises:
        ValueError: the text is not of Triton's GPU IR; a check that cannot look must not pass.
    """
    if "ttg.num-warps" not in ttgir:
        raise ValueError("no Triton GPU IR to look at")
    layouts = {
        name: tuple(tuple(map(int, numbers.split(","))) for numbers in sizes)
        for name, *sizes in _BLOCKED.findall(ttgir)
    }
    found: dict[tuple[int, ...], int] = {}
    for dims, name in set(_TENSOR.findall(ttgir)):
        shape = tuple(map(int, dims.split("x")[:-1]))
        if name not in layouts:
            continue
        size, threads, warps = layouts[name]
        held = math.prod(
            min(s, n) * -(-n // (s * t * w))
            for n, s, t, w in zip(shape, size, threads, warps, strict=True)
        )
        share = max(1, math.prod(shape) // math.prod(threads + warps))
        if held >= _MANY and held >= _TIMES * share:
            found[shape] = max(held, found.get(shape, 0))
    return [
        f"a thread holds {held} elements of a tensor of {'x'.join(map(str, shape))}"
        for shape, held in sorted(found.items())
    ]
