"""linear_cross_entropy in a CUDA graph, where it computes every token, whichever count."""

import pytest
import torch
from liger_losses import linear_cross_entropy


@pytest.mark.gpu
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_graph_replays_on_new_inputs(reduction):
    M, H, V = 300, 64, 1000
    x = torch.randn(M, H, device="cuda", requires_grad=True)
    W = torch.randn(V, H, device="cuda", requires_grad=True)
    target = torch.randint(V, (M,), device="cuda")
    target[::3] = -100

    def run():
        loss = linear_cross_entropy(x, W, target, reduction=reduction)
        return loss.detach(), *torch.autograd.grad(loss.sum(), (x, W))

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        run()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    # a wait for the device would break the capture
    with torch.cuda.graph(graph):
        captured = run()
    with torch.no_grad():
        x.normal_()
        # other tokens count than did in the capture
        target.copy_(torch.randint(V, (M,), device="cuda"))
        target[: M // 2] = -100
    graph.replay()
    for replayed, eager in zip(captured, run(), strict=True):
        torch.testing.assert_close(replayed, eager, rtol=1e-4, atol=1e-5)
