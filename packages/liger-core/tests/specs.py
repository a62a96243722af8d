"""The demo op as a package would list it."""

from pathlib import Path

import torch
from liger_core.testing import BenchCase, OpSpec, load_module


def demo_spec(module):
    return OpSpec(
        name="center",
        op=module.center,
        ref=module.center_ref,
        inputs=lambda new, shape: {"x": new.normal(*shape), "weight": new.normal(shape[-1])},
        options=({}, {"negate": True}),
        shapes=((5, 77), (3, 6), (4, 256), (0, 33), (1, 31), (3, 1), (2, 65_537)),
        grad=("x", "weight"),
        bound=1.25,
        mixed=({"x": torch.bfloat16},),
        rows=("x",),
        fuzz=(range(7), range(1, 300)),
        huge=(40_000, 65_536),
        errors=((lambda a: a.update(weight=a["weight"][1:]), ValueError, r"\(76,\)"),),
        bench=(BenchCase((8192, 4096)),),
        peak=lambda shape, itemsize, sms: 2 * shape[0] * shape[1] * itemsize,
    )


SPECS = (demo_spec(load_module(Path(__file__).with_name("demo_op.py"))),)
