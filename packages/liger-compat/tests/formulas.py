"""What the functions of the library compute, in plain PyTorch."""

import torch
import torch.nn.functional as F

SECTIONS = (1, 2, 1)


def rms(x, w=1.0, eps=1e-6):
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps) * w


def poly(x, w, b, eps=1e-6):
    return sum(w[i] * rms(x ** (3 - i), eps=eps) for i in range(3)) + b


def half(x, cos, sin):
    a, b = x.chunk(2, -1)
    return x * cos + torch.cat([-b, a], -1) * sin


def rotated(q, k, cos, sin, dim=1):
    cos, sin = cos.unsqueeze(dim), sin.unsqueeze(dim)
    return half(q, cos, sin), half(k, cos, sin)


def rotated_by_sections(q, k, cos, sin):
    def chosen(table):
        parts = table.split(SECTIONS * 2, -1)
        return torch.cat([part[i % 3] for i, part in enumerate(parts)], -1)

    return rotated(q, k, chosen(cos), chosen(sin))


def rotated_in_complex(q, k, freqs):
    pairs = (torch.view_as_complex(x.unflatten(-1, (-1, 2))) * freqs[:, :, None] for x in (q, k))
    return tuple(torch.view_as_real(z).flatten(-2) for z in pairs)


def mlp(module, x, act=F.silu, before=1.0, after=1.0):
    gate, up = module.gate_proj(x), module.up_proj(x)
    return module.down_proj(act(gate * before) * up) * after


def mean(each, t=None):
    counts = torch.ones_like(each) if t is None else (t != -100).to(each)
    return (each * counts).sum() / counts.sum()


def cross_entropy(x, t, z=0.0, cap=None, reduction="mean", **options):
    x = x if cap is None else cap * torch.tanh(x / cap)
    each = F.cross_entropy(x, t, reduction="none", **options)
    each = each + z * x.logsumexp(-1).square() * (t != -100)
    return {"none": each, "sum": each.sum(), "mean": mean(each, t)}[reduction]


def scaled_by_probability(x, t):
    p = x.softmax(-1).gather(-1, t.clamp(min=0)[:, None])[:, 0].detach()
    return mean(F.cross_entropy(x, t, reduction="none") * p, t)


def kl(q, p, reduction="mean"):
    return F.kl_div(q, p, reduction=reduction)


def jsd(q, p, t=None, beta=0.5):
    def divergence(a, b):
        return (a.exp() * (a - b)).sum(-1)

    if beta in (0.0, 1.0):
        return mean(divergence(p, q) if beta == 0.0 else divergence(q, p), t)
    m = (beta * p.exp() + (1 - beta) * q.exp()).log()
    return mean(beta * divergence(p, m) + (1 - beta) * divergence(q, m), t)


def head_jsd(x, w, y, v, t=None, beta=0.5, temperature=1.0):
    q, p = (F.log_softmax(F.linear(*pair) / temperature, -1) for pair in ((x, w), (y, v)))
    return jsd(q, p, t, beta)


def head_kl(x, w, p, t=None, temperature=1.0):
    q = F.log_softmax(F.linear(x, w) / temperature, -1)
    return mean(F.kl_div(q, p, reduction="none").sum(-1), t)


def tvd(p, q, t=None, reduction="mean"):
    each = (p - q).abs() / 2
    if t is not None:
        each = each * (t != -100)[:, None]
    rows = len(p) if t is None else (t != -100).sum()
    over = {"none": 1, "sum": 1, "batchmean": rows, "mean": rows * p.shape[-1]}[reduction]
    return (each if reduction == "none" else each.sum()) / over
