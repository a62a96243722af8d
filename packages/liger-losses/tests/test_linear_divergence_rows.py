"""Rows of logits against listed probabilities and by their cosine: `linear_kl_div` with a top-k
target, `linear_cosine`, and the row functions behind them.
"""

import pytest
import torch
import torch.nn.functional as F
from liger_core.testing import Builder
from liger_core.testing.numerics import same_bits
from liger_core.testing.running import device
from liger_losses import linear_cosine, linear_kl_div
from liger_losses.cosine_rows import cosine_fwd
from liger_losses.divergence_op import head_divergence
from liger_losses.divergence_torch import Divergence
from liger_losses.top_k_divergence import top_k_fwd

M, H, V, K = 7, 16, 63, 6


def new(dtype=torch.float32, seed=0):
    return Builder(dtype, device(), seed)


def head():
    return new().normal(M, H), new(seed=1).normal(V, H, std=2 * H**-0.5)


def listed():
    """Log-probabilities of K classes each and their ids, none twice."""
    v = new(seed=2).normal(M, V, std=2.0).log_softmax(-1)
    return v.topk(K, sorted=False)


def run(op, x, W, *arguments, **options):
    x, W = (t.detach().requires_grad_() for t in (x, W))
    loss = op(x, W, *arguments, **options)
    return loss.detach(), *torch.autograd.grad(loss.sum(), (x, W))


def test_all_classes_listed_are_the_full_divergence():
    (x, W), (tx, tW) = head(), (new(seed=3).normal(M, 8), new(seed=4).normal(V, 8))
    v = F.linear(tx, tW).log_softmax(-1)
    ids = torch.arange(V, device=device()).expand(M, V).flip(-1)
    top = {"target_log_probs": v.flip(-1), "target_ids": ids.int()}
    for options in ({}, {"reduction": "none", "chunk_bytes": 3 * V * 4}):
        for one, other in zip(
            run(linear_kl_div, x, W, **top, **options),
            run(linear_kl_div, x, W, tx, tW, **options),
            strict=True,
        ):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_entries_of_a_top_k_target():
    """Their order is rounding; -inf leaves one out, whatever its id; halves of one add up."""
    (x, W), (v, ids) = head(), listed()
    options = {"reduction": "none", "temperature": 0.5}

    def results(v, ids):
        return run(linear_kl_div, x, W, target_log_probs=v, target_ids=ids, **options)

    plain = results(v, ids)
    order = torch.randperm(K).to(device())
    padded = F.pad(v, (0, 2), value=-float("inf")), F.pad(ids, (1, 1), value=V + 5).roll(-1, -1)
    for other in (results(v[:, order], ids[:, order]), results(*padded)):
        for a, b in zip(plain, other, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
    # the loss of halves is that of the whole, less p log 2
    twice = results(torch.cat((v, v), -1) - 0.6931472, torch.cat((ids, ids), -1))
    torch.testing.assert_close(twice[0] + 0.6931472 * v.exp().sum(-1), plain[0])
    for a, b in zip(plain[1:], twice[1:], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("bad", [-1, V, 2**40, -(2**62)])
def test_id_out_of_range(bad):
    """NaN in its token; the others keep their bits. The interpreter sees any access beyond."""
    (x, W), (v, ids) = head(), listed()
    options = {"target_log_probs": v, "reduction": "none"}
    plain = run(linear_kl_div, x, W, target_ids=ids, **options)
    ids[4, 2] = bad
    loss, dx, dW = run(linear_kl_div, x, W, target_ids=ids, **options)
    good = torch.arange(M, device=device()) != 4
    assert loss[4].isnan()
    assert dx[4].isnan().all()
    assert dW.isnan().all()
    assert same_bits(loss[good], plain[0][good])
    assert same_bits(dx[good], plain[1][good])


@pytest.mark.parametrize("V", [2, 63, 9000])
@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_row_functions(V, inplace, dtype):
    """Loss and gradient of rows as fp64 has them, also where the logits become the gradient."""
    x, y = new(dtype).normal(5, V, std=2.0), new(dtype, 1).normal(5, V, std=2.0)
    labels, g = torch.tensor([0, 0, -100, 0, 0], device=device()), new(seed=2).uniform(5)
    g = g.double() if dtype == torch.float64 else g
    k = min(V, 40)
    v, ids = y.double().log_softmax(-1).topk(k)
    v = v.to(dtype)
    how = Divergence("kl", 0.5, True, 2.0)

    def formula(z, name):
        if name == "cosine":
            return 1 - F.cosine_similarity(z, y.double(), dim=-1)
        u = (z / 2.0).log_softmax(-1).gather(-1, ids)
        return (v.double().exp() * (v.double() - u)).sum(-1)

    for name in ("top_k", "cosine"):
        z = x.detach().double().requires_grad_()
        right = formula(z, name) * (labels != -100)
        (d,) = torch.autograd.grad(right, z, g.double())
        buffer = x.clone()
        dx = buffer if inplace else torch.empty_like(x)
        if name == "top_k":
            loss = top_k_fwd(buffer, v, ids, labels, how, dx, g)
        else:
            loss = cosine_fwd(buffer, y, labels, -100, dx, g)
        limit = 1e-12 if dtype == torch.float64 else 2e-6
        torch.testing.assert_close(loss.double(), right.detach(), rtol=10 * limit, atol=limit)
        limit = max(limit, 2 * torch.finfo(dtype).eps)
        torch.testing.assert_close(dx.double(), d, rtol=limit, atol=limit * d.abs().max().item())


def test_cosine_has_no_scale():
    """Scaling a head changes nothing but the gradient's scale; equal logits cost nothing."""
    (x, W), (tx, tW) = head(), (new(seed=3).normal(M, 8), new(seed=4).normal(V, 8))
    loss, dx, dW = run(linear_cosine, x, W, tx, tW)
    other, dx_s, dW_s = run(linear_cosine, x, W * 4, tx, tW * 0.25)
    torch.testing.assert_close(other, loss)
    torch.testing.assert_close(dx_s, dx, rtol=1e-4, atol=1e-7)
    torch.testing.assert_close(dW_s * 4, dW, rtol=1e-4, atol=1e-7)
    loss, dx, _ = run(linear_cosine, x, W, x, W)
    assert loss.abs() < 1e-6
    assert dx.abs().max() < 1e-6
    # logits of zeros have no direction
    loss, dx, dW = run(linear_cosine, torch.zeros_like(x), W, tx, tW, reduction="sum")
    torch.testing.assert_close(loss, torch.full_like(loss, float(M)))
    assert dx.isfinite().all()
    assert dW.isfinite().all()


@pytest.mark.parametrize("per_token", [False, True])
@pytest.mark.parametrize("kind", ["kl", "cosine"])
def test_opcheck(kind, per_token):
    (x, W), (v, ids) = head(), listed()
    teacher = (v, None, None, ids) if kind == "kl" else (x.clone(), W.clone(), None, None)
    x.requires_grad_(), W.requires_grad_()
    scale, need = torch.tensor(0.5, device=device()), [True, True, False]
    settings = (kind, 0.5, 1.0, -100, 3 * V * 4, True, per_token)
    arguments = (x, W, None, *teacher, None, scale, need, *settings)
    torch.library.opcheck(head_divergence, arguments)
