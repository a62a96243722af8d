"""`liger vendor` on the ops of all installed kernel packages."""

import functools
import importlib
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from liger_core.env import kernel_packages
from liger_core.testing import Builder, OpSpec, load_specs
from liger_core.vendor import one_file, write
from vendored import load, run_alone

pytest.importorskip("triton", reason="a vendored file imports Triton")


def rows() -> list[OpSpec]:
    """Of public ops; some rows have a function of their own, made of such."""
    found = []
    for package in kernel_packages():
        public = importlib.import_module(package).__all__
        tests = Path(__file__).parents[2] / package.replace("_", "-") / "tests"
        found += [row for row in load_specs(str(tests / "x")) if function(row).__name__ in public]
    return found


def function(row: OpSpec) -> Callable[..., object]:
    return row.op.func if isinstance(row.op, functools.partial) else row.op


@pytest.mark.parametrize("row", rows(), ids=lambda row: row.name)
def test_vendored_op_equals_the_packaged_one(row: OpSpec, tmp_path: Path) -> None:
    """The same bits, forward and backward, through PyTorch or through the interpreted kernels."""
    name = function(row).__name__
    vendored = getattr(load(write(name, tmp_path), f"vendored_{row.name}"), name)
    if isinstance(row.op, functools.partial):
        vendored = functools.partial(vendored, *row.op.args, **row.op.keywords)
    for options in row.options:
        results = []
        for op in (row.op, vendored):
            inputs = row.inputs(Builder(torch.float32), row.shapes[0])
            leaves = [inputs[name].requires_grad_() for name in row.grad]
            # an op may be allowed to write its inputs, which a leaf forbids
            outputs = op(**{key: x.clone() for key, x in inputs.items()}, **options)
            outputs = [
                x for x in (outputs if isinstance(outputs, tuple) else [outputs]) if x is not None
            ]
            sums = [x.sum() for x in outputs if x.requires_grad]
            results.append([*outputs, *torch.autograd.grad(sums, leaves)])
        for packaged, copied in zip(*results, strict=True):
            assert torch.equal(packaged, copied), options


def public() -> list[str]:
    """All public names of the kernel packages, also of those without rows."""
    return [n for package in kernel_packages() for n in importlib.import_module(package).__all__]


@pytest.mark.parametrize("name", public())
def test_every_public_name_is_one_file(name: str) -> None:
    file, text = one_file(name)
    assert file.endswith(".py")
    assert "liger_" not in "".join(re.findall(r"^\s*(?:from|import) .*", text, re.MULTILINE))
    compile(text, file, "exec")


def test_vendored_ops_run_without_liger(tmp_path: Path) -> None:
    ops = {function(row).__name__ for row in rows()}
    if ops:
        run_alone(*{str(write(name, tmp_path, force=True)) for name in ops})
