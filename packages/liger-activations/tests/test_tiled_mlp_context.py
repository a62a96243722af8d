"""tiled_mlp within what surrounds an MLP in training: hooks, dropout, autocast, checkpoints,
torch.compile, DDP, FSDP, tensor parallelism.
"""

import copy
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
from liger_activations import TiledMLP, tiled_mlp
from liger_core.testing import load_module
from liger_core.testing.numerics import measure
from torch._dynamo.backends.common import aot_autograd
from torch.utils.checkpoint import checkpoint

cases = load_module(Path(__file__).with_name("tiled_mlp_cases.py"))
H, TILES, Storages = cases.H, cases.TILES, cases.Storages
batch, build, forms, step = cases.batch, cases.build, cases.forms, cases.step
assert_close, in_order = cases.assert_close, cases.in_order


def test_hooks_run_once():
    """Those of parameters on whole gradients, those of the module around all tiles."""
    plain, tiled, x = build(), build(), batch()
    finished, outer, inner = [], [], []
    for mlp in (plain, tiled):
        for name, p in mlp.named_parameters():
            p.register_hook(lambda grad: 2 * grad)
            p.register_post_accumulate_grad_hook(lambda _, name=name: finished.append(name))
    plain(x).sum().backward()
    expected, finished[:] = sorted(finished), []
    tiled.register_forward_pre_hook(lambda _, args: (args[0] * 2,))
    tiled.register_forward_hook(lambda _, args, y: outer.append(y.shape))
    tiled.register_full_backward_hook(lambda _, dx, dy: outer.append(dx[0].shape))
    tiled.up.register_forward_hook(lambda _, args, y: inner.append(y.shape))
    tiled_mlp(tiled, x / 2, TILES).sum().backward()
    assert sorted(finished) == expected == sorted(dict(tiled.named_parameters()))
    assert outer == [x.shape, x.shape]
    assert len(inner) == 2 * TILES
    assert "forward" not in vars(tiled)
    assert_close([p.grad for p in tiled.parameters()], [p.grad for p in plain.parameters()])


def random_state():
    on_gpu = cases.device().type == "cuda"
    return [torch.get_rng_state(), *([torch.cuda.get_rng_state()] if on_gpu else [])]


def test_dropout():
    """The same numbers in the backward, which leaves the generators where they are."""
    mlp, x = build(p=0.5), batch()
    torch.manual_seed(3)
    expected, state = step(in_order(mlp), mlp, x), random_state()
    for form in forms(mlp):
        torch.manual_seed(3)
        assert_close(step(form, mlp, x), expected)
        assert all(map(torch.equal, random_state(), state))


@pytest.mark.parametrize("backward", ["inside", "outside"])
def test_autocast(backward):
    """In the backward as in the forward, and with other readers of the parameters."""
    mlp, x, dtypes = build(), batch(21, H), []
    mlp.up.register_forward_hook(lambda _, args, y: dtypes.append(y.dtype))

    def run(function):
        mlp.zero_grad()
        with torch.autocast(x.device.type, torch.bfloat16):
            y = function(x)
            loss = y.float().square().sum() + mlp(x).float().sum()
            if backward == "inside":
                loss.backward()
        if backward == "outside":
            loss.backward()
        assert y.dtype == torch.bfloat16
        return [y.detach(), *(p.grad for p in mlp.parameters())]

    for a, b in zip(run(TiledMLP(mlp, TILES)), run(mlp), strict=True):
        assert (a - b).abs().max() <= 2e-2 * b.abs().max()
    assert set(dtypes) == {torch.bfloat16}


@pytest.mark.parametrize(("reentrant", "runs"), [(False, 2), (True, 3)])
def test_checkpoint(reentrant, runs):
    """A region that is not reentrant is repeated up to the MLP only."""
    mlp, x = build(p=0.5), batch()
    torch.manual_seed(3)
    y, _, *grads = step(in_order(mlp), mlp, x)
    torch.manual_seed(3)
    mlp.calls, tiled = [], TiledMLP(mlp, TILES)
    z = checkpoint(lambda x: x + tiled(x), x, use_reentrant=reentrant)
    (z - x).square().sum().backward()
    assert_close([(z - x).detach(), *(p.grad for p in mlp.parameters())], [y, *grads])
    assert len(mlp.calls) == runs * TILES


@pytest.mark.parametrize(
    ("form", "dtype"), [("module", torch.float32), ("in place", torch.bfloat16)]
)
def test_compiled(form, dtype):
    """As right and as small as it is eagerly, and parameters finish once."""
    torch._dynamo.reset()
    tokens, inner, tiles, finished = 512, 256, 16, []
    mlp, x, storages = build(H, inner).to(dtype), batch(tokens, H, dtype=dtype), Storages()
    exact = copy.deepcopy(mlp).double()
    truth = step(exact, exact, x.detach().double().requires_grad_())
    eager, tiled = step(mlp, mlp, x), TiledMLP(mlp, tiles)
    if form == "in place":
        mlp.forward, tiled = partial(tiled_mlp, mlp.forward, num_tiles=tiles), mlp
    for p in mlp.parameters():
        p.register_post_accumulate_grad_hook(finished.append)

    def watched(graph, _):
        def run(args):
            with storages:
                return graph(*args)

        run._boxed_call = True
        return run

    compiled = torch.compile(tiled, backend=aot_autograd(fw_compiler=watched), fullgraph=True)
    y = compiled(x)
    y.square().sum().backward()
    actual = [y.detach(), x.grad, *(p.grad for p in mlp.parameters())]
    for a, b, t in zip(actual, eager, truth, strict=True):
        assert measure(a, t)[0] <= 1.25 * measure(b, t)[0] + 1e-7 * t.abs().max()
    assert len(finished) == len(actual) - 2
    weights, tile = sum(p.nbytes for p in mlp.parameters()), tokens // tiles * inner * x.itemsize
    assert storages.largest < tokens * inner * x.itemsize
    assert storages.peak < 3 * x.nbytes + 4 * weights + 9 * tile


def test_two_processes(tmp_path):
    """DDP, FSDP2 and tensor parallelism over gloo: gradients, hooks and collectives."""
    worker = Path(__file__).parent / "tiled_mlp_processes.py"
    command = [sys.executable, str(worker), str(tmp_path / "store")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=170, check=False)
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.mark.gpu
def test_dropout_under_capture_raises():
    mlp, x, graph = build(p=0.5), batch(), torch.cuda.CUDAGraph()
    # the first product of a process sets up its library, which a capture does not allow
    tiled_mlp(mlp, x)
    with pytest.raises(RuntimeError) as caught, torch.cuda.graph(graph):
        tiled_mlp(mlp, x)
    # the end of the broken capture raises too, after ours
    error, messages = caught.value, ""
    while error is not None:
        error, messages = error.__context__, f"{messages} {error}"
    assert "captured CUDA graph" in messages
