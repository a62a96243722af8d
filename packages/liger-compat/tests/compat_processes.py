"""Two ranks with a shard of the vocabulary each; a script of test_ranks.

Argument: the file over which the ranks meet.
"""

import sys
from datetime import timedelta

import torch
import torch.nn.functional as F
from liger_kernel.chunked_loss import LigerFusedLinearGRPOLoss
from liger_kernel.megatron import LigerMegatronCrossEntropy
from liger_kernel.ops import LigerFusedLinearScaledCrossEntropyTPFunction
from liger_kernel.transformers import LigerVocabParallelCrossEntropy
from liger_kernel.transformers.fsdp import _FSDPForwardRedirection
from torch import distributed as dist, multiprocessing
from torch.distributed.fsdp import FullyShardedDataParallel
from torch.testing import assert_close

RANKS, S, B, V, H = 2, 3, 2, 12, 4


def shard(t: torch.Tensor, dim: int) -> torch.Tensor:
    return t.detach().chunk(RANKS, dim)[dist.get_rank()].clone().requires_grad_()


def check_cross_entropy() -> None:
    logits = torch.randn(S, B, V, dtype=torch.float64).requires_grad_()
    target = torch.randint(0, V, (S, B))
    upstream = torch.randn(S, B, dtype=torch.float64)
    for formula, share in (("pytorch", 0.1), ("megatron", 0.1 * V / (V - 1))):
        ours = shard(logits, -1)
        loss = LigerVocabParallelCrossEntropy(label_smoothing=0.1, label_smoothing_formula=formula)
        actual = loss(ours, target, dist.group.WORLD)
        expected = F.cross_entropy(
            logits.flatten(0, 1), target.flatten(), reduction="none", label_smoothing=share
        ).view(S, B)
        assert_close(actual, expected)
        actual.backward(upstream)
        (gradient,) = torch.autograd.grad(expected, logits, upstream)
        assert_close(ours.grad, shard(gradient, -1).detach())
    plain = LigerMegatronCrossEntropy()(shard(logits, -1), target, dist.group.WORLD)
    assert_close(plain, F.cross_entropy(logits.movedim(-1, 1), target, reduction="none"))
    try:
        LigerMegatronCrossEntropy(label_smoothing=0.1)(shard(logits, -1), target, dist.group.WORLD)
    except NotImplementedError:
        return
    raise AssertionError("partitions would give each rank another loss")


def check_scaled_head() -> None:
    x, w = (torch.randn(*shape, dtype=torch.float64).requires_grad_() for shape in ((5, H), (V, H)))
    target = torch.tensor([0, V - 1, -100, 3, 7])
    ours = shard(w, 0)
    input = x.detach().clone().requires_grad_()
    actual = LigerFusedLinearScaledCrossEntropyTPFunction.apply(
        input, ours, target, dist.group.WORLD, 2.0
    )
    expected = F.cross_entropy(F.linear(x, w) / 2, target, reduction="none")
    assert_close(actual, expected)
    actual.sum().backward()
    expected.sum().backward()
    assert_close(input.grad, x.grad)
    assert_close(ours.grad, shard(w.grad, 0).detach())


def check_tokens_of_all_ranks() -> None:
    """DAPO divides by the tokens of all ranks over their number."""
    x, w, ids = torch.randn(2, 4, H), torch.randn(V, H), torch.randint(0, V, (2, 4))
    mask = torch.ones(2, 4)
    mask[0, 1 + dist.get_rank() :] = 0
    loss = LigerFusedLinearGRPOLoss(beta=0.0, use_ref_model=False)
    advantages = torch.tensor([1.0, -2.0])
    for items, normalizer in ((None, 5.5), (30, 15.0)):
        value, _ = loss(x, w, ids, mask, advantages, num_items_in_batch=items)
        # the ratio is 1
        assert_close(value, -(mask * advantages[:, None]).sum() / normalizer)


def check_redirection() -> None:
    """A method of what FSDP wrapped sees whole parameters."""
    layer = torch.nn.Linear(H, H)
    x = torch.randn(3, H)
    expected = layer(x).detach() * 2.0
    wrapped = FullyShardedDataParallel(layer, device_id=torch.device("cpu"))
    shapes = []

    def method(x: torch.Tensor, scale: float) -> torch.Tensor:
        shapes.append(wrapped.module.weight.shape)
        return wrapped.module(x) * scale

    actual = _FSDPForwardRedirection()(wrapped, method, x, scale=2.0)
    assert shapes == [(H, H)]
    assert_close(actual, expected)
    # once only
    assert_close(wrapped(x) * 2.0, expected)


def work(rank: int, store: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{store}", rank=rank, world_size=RANKS,
        timeout=timedelta(seconds=60),
    )  # fmt: skip
    for check in (
        check_cross_entropy,
        check_scaled_head,
        check_tokens_of_all_ranks,
        check_redirection,
    ):
        torch.manual_seed(0)
        check()
        if rank == 0:
            print(check.__name__, flush=True)
    dist.destroy_process_group()


if __name__ == "__main__":
    # forked, so that the imports are paid once
    multiprocessing.start_processes(work, sys.argv[1:], nprocs=RANKS, start_method="fork")
