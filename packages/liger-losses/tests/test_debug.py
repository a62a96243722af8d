"""With debugging on, labels out of range raise in every op that takes labels."""

import pytest
import torch
from liger_core import debug
from liger_core.device import use_kernels
from liger_core.testing import Builder
from liger_core.testing.numerics import same_bits
from liger_core.testing.running import device
from liger_losses import (
    cross_entropy,
    cross_entropy_with_metrics,
    linear_cross_entropy,
    linear_cross_entropy_with_metrics,
    linear_kl_div,
    linear_log_probs,
    linear_loss,
    log_probs,
)

V = 20


def new(seed=0):
    return Builder(torch.float32, device(), seed)


def nll(stats):
    return -stats.log_probs.sum(-1), ()


def logits():
    return new().normal(2, 3, V)


def head():
    return new().normal(2, 3, 8), new(1).normal(V, 8)


OPS = {
    "cross_entropy": lambda t: cross_entropy(logits().transpose(1, 2), t),
    "cross_entropy_with_metrics": lambda t: (
        cross_entropy_with_metrics(logits().transpose(1, 2), t).loss
    ),
    "log_probs": lambda t: log_probs(logits(), t).log_probs,
    "linear_cross_entropy": lambda t: linear_cross_entropy(*head(), t),
    "linear_cross_entropy_with_metrics": lambda t: (
        linear_cross_entropy_with_metrics(*head(), t).loss
    ),
    "linear_log_probs": lambda t: linear_log_probs(*head(), t).log_probs,
    "linear_loss": lambda t: linear_loss(nll, *head(), t)[0],
}
each_op = pytest.mark.parametrize("op", OPS.values(), ids=OPS)


@each_op
@pytest.mark.parametrize("label", [-1, V, 2**40])
def test_label_out_of_range(op, label):
    target = new(2).integers(V, 2, 3)
    target[0, 1] = -100
    right = op(target)
    with debug():
        assert same_bits(op(target), right)
    target[1, 2] = label
    assert op(target).isnan().any()
    with debug(), pytest.raises(ValueError, match=rf"target\[1, 2\] is {label}, outside \[0, 20\)"):
        op(target)


def test_class_of_a_teacher_out_of_range():
    ids = new(2).integers(V, 2, 3, 4)
    log_p = new(3).normal(2, 3, 4).log_softmax(-1)
    log_p[0, 0, 0], ids[0, 0, 0] = -float("inf"), V + 5
    with debug():
        linear_kl_div(*head(), target_log_probs=log_p, target_ids=ids)
        ids[1, 0, 3] = -2
        with pytest.raises(ValueError, match=r"target_ids\[1, 0, 3\] is -2"):
            linear_kl_div(*head(), target_log_probs=log_p, target_ids=ids)


@pytest.mark.skipif(use_kernels(torch.empty(0, device=device())), reason="needs the PyTorch path")
def test_a_traced_graph_asks_nothing():
    """torch.compile takes the op whole, as without debugging: the row is NaN."""
    target = torch.full((6,), V, device=device())
    with debug():
        compiled = torch.compile(cross_entropy, fullgraph=True, backend="eager")
        assert compiled(new().normal(6, V), target).isnan()


@pytest.mark.gpu
def test_a_captured_graph_asks_nothing():
    target = torch.full((2, 3), V, device="cuda")
    OPS["cross_entropy"](target)
    graph = torch.cuda.CUDAGraph()
    with debug(), torch.cuda.graph(graph):
        loss = OPS["cross_entropy"](target)
    graph.replay()
    assert loss.isnan()
