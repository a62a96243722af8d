"""Heads with any number of classes, laid out as a GPU likes large ones of half precision: values
against fp64, whatever the loss.
"""

import pytest
import torch
from liger_core.testing import load_specs
from liger_core.testing.running import Case, check_values
from liger_losses import head_products
from liger_losses.stats_op import head_stats

SPECS = [spec for spec in load_specs(__file__) if "linear" in spec.name]


def cases():
    for spec in SPECS:
        # V is the last size of every such shape
        shape = next(s for s in spec.shapes if s[0] > 1 and s[-1] % 8 and s[-1] > 8)
        for options in spec.options:
            for dtype in spec.dtypes:
                if dtype.itemsize == 2:
                    yield Case(spec, shape, options, dtype)


@pytest.fixture(autouse=True)
def as_on_a_gpu(monkeypatch):
    """On a CPU too, where nothing is interpreted."""
    monkeypatch.setattr(head_products, "_MANY", 0)
    monkeypatch.setattr(head_products, "use_kernels", lambda x: True)


@pytest.mark.parametrize("case", list(cases()), ids=repr)
def test_values(case):
    inputs = case.inputs()
    check_values(case, inputs, case.run(inputs))


def test_kept_logits_as_traced():
    """One chunk's logits are a result of the operator: their strides are what a trace expects."""
    x, W = torch.randn(5, 4).bfloat16(), torch.randn(21, 4).bfloat16()
    want, need = [True] * 4, [True, True, False]
    given = x, W, None, torch.arange(5), want, need, -100, None, 1.0, None, True
    *_, kept, _ = head_stats(*given)
    assert kept.stride() == (32, 1)
    torch.library.opcheck(head_stats, given, test_utils="test_faketensor")


def test_every_linear_loss_is_here():
    kinds = {"cross_entropy", "log_probs", "kl_div", "jsd", "tvd", "cosine", "kl_div_top_k"}
    assert {f"linear_{kind}" for kind in kinds} <= {case.spec.name for case in cases()}
