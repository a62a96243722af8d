"""tiled_mlp: the generic suite, with the weights as shared tensors; values, memory, gradients."""

import copy
import pickle
from functools import partial
from pathlib import Path

import pytest
import torch
from liger_activations import TiledMLP, tiled_mlp
from liger_activations.tiled_mlp import tiled_mlp_ref
from liger_core.testing import OpSpec, OpSuite, load_module, replace
from liger_core.testing.numerics import measure, same_bits
from torch import nn
from torch.nn.functional import silu

cases = load_module(Path(__file__).with_name("tiled_mlp_cases.py"))
H, TILES, Storages = cases.H, cases.TILES, cases.Storages
batch, build, forms, step = cases.batch, cases.build, cases.forms, cases.step
assert_close = cases.assert_close


def gated(x, gate, up, down):
    return (silu(x @ gate) * (x @ up)) @ down


def op(x, gate, up, down, num_tiles=None):
    return tiled_mlp(gated, x, num_tiles, shared=(gate, up, down))


def ref(x, gate, up, down):
    return tiled_mlp_ref(gated, x, (gate, up, down))


def inputs(new, shape):
    width = shape[-1]
    sizes = {
        "gate": (width, 3 * width),
        "up": (width, 3 * width),
        "down": (3 * width, width + 2),
    }
    weights = {name: new.normal(*size, std=size[0] ** -0.5) for name, size in sizes.items()}
    return {"x": new.normal(*shape)} | weights


class TestOps(OpSuite):
    specs = (
        OpSpec(
            name="tiled_mlp",
            op=op,
            ref=ref,
            inputs=inputs,
            shapes=((3, 31, 16), (0, 9), (1, 1), (7,)),
            grad=("x", "gate", "up", "down"),
            options=({}, {"num_tiles": 4}),
            op_only=("num_tiles",),
            # a tile's dw is rounded and so is their sum: sqrt(2) of an eager dw rounded once
            bound=2.0,
            errors=(
                (replace(num_tiles=lambda a: 0), ValueError, "positive integer"),
                (replace(num_tiles=lambda a: 2.0), ValueError, "positive integer"),
                (replace(x=lambda a: a["x"].long()), ValueError, "floating-point rows"),
                (replace(x=lambda a: a["x"][0, 0, 0]), ValueError, "floating-point rows"),
            ),
            skips={
                "edge_wide": "the MLP is the caller's",
                "batch_invariance": "the matrix products are PyTorch's",
                "bench_launches": "no kernels of its own",
                "compile_traces_kernels": "no kernels of its own",
                "compile_traces_dynamic_shapes": "no kernels of its own",
                "large_offsets": "no kernels of its own",
                "huge": "no kernels of its own",
                "peak": "test_memory has a bound, the tensors of a tile are the caller's",
                "peak_on_gpu": "test_memory has a bound, the tensors of a tile are the caller's",
            },
        ),
    )


@pytest.mark.parametrize("shape", [(21, H), (1, 21, H), (2, 3, 5, H), (H,), (2, 0, H)], ids=str)
@pytest.mark.parametrize("out", [H, 3])
def test_is_the_mlp(shape, out):
    mlp, x = build(H, 64, out), batch(*shape)
    expected = step(mlp, mlp, x)
    for form in forms(mlp):
        assert_close(step(form, mlp, x), expected)
    with torch.no_grad():
        y = tiled_mlp(mlp, x, TILES)
    assert_close([y], expected[:1])
    assert not y.requires_grad


@pytest.mark.parametrize("num_tiles", [1, 7, 64, 1000])
def test_bf16_error(num_tiles):
    """Against fp64, at most 1.5 times that of the MLP itself, however many tiles are summed."""
    mlp, x = build(64, 256).bfloat16(), batch(512, 64, dtype=torch.bfloat16)
    exact = copy.deepcopy(mlp).double()
    truth = step(exact, exact, x.detach().double().requires_grad_())
    tiled = step(TiledMLP(mlp, num_tiles), mlp, x)
    for a, b, t in zip(tiled, step(mlp, mlp, x), truth, strict=True):
        assert measure(a, t)[0] <= 1.5 * measure(b, t)[0]


def test_default_number_of_tiles():
    mlp = build()
    mlp.calls = []
    tiled_mlp(mlp, batch(2, 3 * H, H)).sum().backward()
    assert mlp.calls == 12 * [(1, H, H)]


def test_memory():
    """Kept: x and the parameters. Live: one tile's tensors, and none of all tokens but x's like."""
    tokens, inner, rows = 2048, 512, 64
    mlp, x, kept = build(32, inner), batch(tokens, 32), []

    def peak(function):
        with Storages() as storages:
            with torch.autograd.graph.saved_tensors_hooks(
                lambda t: kept.append(t) or t, lambda t: t
            ):
                y = function(x)
            y.sum().backward()
        return storages

    tiled = peak(TiledMLP(mlp, tokens // rows))
    assert {t.data_ptr() for t in kept} == {t.data_ptr() for t in (x, *mlp.parameters())}
    assert tiled.largest == x.nbytes
    weights = sum(p.nbytes for p in mlp.parameters())
    # y, dy and dx; sums and a tile's gradients; at most nine tensors as wide as the MLP inside
    assert tiled.peak < 3 * x.nbytes + 2 * weights + 9 * rows * inner * 4
    assert peak(mlp).peak > 4 * tokens * inner * 4


@pytest.mark.parametrize("needed", ["x", "up.weight", "x gate.bias down.weight", "down.bias"])
def test_frozen(needed):
    mlp, x = build(), batch()
    names = ["y", "x", *dict(mlp.named_parameters())]
    expected = dict(zip(names, step(mlp, mlp, x), strict=True))
    tensors = {"x": x} | dict(mlp.named_parameters())
    for name, t in tensors.items():
        t.requires_grad_(name in needed.split())
    tiled_mlp(mlp, x, TILES).square().sum().backward()
    for name, t in tensors.items():
        assert (t.grad is not None) == (name in needed.split())
        if t.grad is not None:
            assert_close([t.grad], [expected[name]])


def test_tied_and_unused_parameters():
    mlp, x = build(), batch()
    mlp.up.weight = mlp.gate.weight
    expected = step(mlp, mlp, x)[2:]
    mlp.spare = nn.Parameter(torch.ones(2, device=x.device))
    tiled_mlp(mlp, x, TILES).square().sum().backward()
    assert mlp.spare.grad is None
    assert_close([p.grad for p in mlp.parameters() if p.grad is not None], expected)


def test_backward_twice():
    mlp, x = build(p=0.5), batch()
    y = tiled_mlp(mlp, x, TILES)
    wanted = [x, *mlp.parameters()]
    first = torch.autograd.grad(y.sum(), wanted, retain_graph=True)
    second = torch.autograd.grad(y.sum(), wanted)
    assert all(map(same_bits, first, second))
    with pytest.raises(RuntimeError, match="second time"):
        y.sum().backward()


@pytest.mark.parametrize("which", ["x", "parameter", "by the mlp"])
def test_writing_what_is_kept_raises(which):
    mlp, x = build(), batch().detach()
    writing = (lambda x: mlp(x.mul_(2))) if which == "by the mlp" else mlp
    y = tiled_mlp(writing, x, module=mlp)
    with torch.no_grad():
        if which == "x":
            x.add_(1)
        if which == "parameter":
            mlp.gate.weight.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


def test_function_of_a_module_and_shared_tensors():
    mlp, x, scale = build(), batch(), batch(H)
    wanted = x, scale, mlp.up.weight
    y = tiled_mlp(lambda x, s: mlp(x) * s, x, TILES, module=mlp, shared=(scale.exp(),))
    expected = torch.autograd.grad((mlp(x) * scale.exp()).sum(), wanted)
    assert_close(torch.autograd.grad(y.sum(), wanted), expected)
    with pytest.raises(ValueError, match=r"\(16,\) is read that requires grad"):
        tiled_mlp(lambda x: mlp(x) * scale, x, TILES, module=mlp).sum().backward()


def test_mlp_without_gradient():
    x = batch()
    tiled_mlp(lambda x: x.detach() * 2, x, TILES).sum().backward()
    assert not x.grad.any()


@pytest.mark.parametrize("bad", [lambda x: x[..., 1:, :], lambda x: x.flatten(), lambda x: x.sum()])
def test_changed_tokens_raise(bad):
    for x in (batch(), batch().detach()):
        with pytest.raises(ValueError, match="only the last dimension may change"):
            tiled_mlp(bad, x, TILES)


def test_modules():
    """The wrapper, and a forward replaced in place, which keeps the state dict; each copies."""
    plain = nn.Sequential(nn.Linear(H, 3), nn.GELU(), nn.Linear(3, H))
    tiled, names, x = TiledMLP(plain, 2), list(plain.state_dict()), batch().cpu()
    assert list(tiled.state_dict()) == [f"mlp.{name}" for name in names]
    assert repr(tiled).startswith("TiledMLP(\n  num_tiles=2")
    plain.forward = partial(tiled_mlp, plain.forward, num_tiles=2)
    assert list(plain.state_dict()) == names
    for module in (tiled, plain):
        for twin in (copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
            assert_close([twin(x)], [module(x)])
            twin(x).sum().backward()
            assert all(p.grad is not None for p in twin.parameters())
            assert all(p.grad is None for p in module.parameters())
