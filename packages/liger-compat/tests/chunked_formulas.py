"""What the chunked losses compute, from full logits in plain PyTorch, with what they return."""

import torch
import torch.nn.functional as F


def log_probs(x, w, t, b=None, averaged=False):
    """Of responses, from [B, T, H]; and logits, mask."""
    logits, mask = F.linear(x, w, b), t != -100
    each = logits.log_softmax(-1).gather(-1, t.clamp(min=0)[..., None])[..., 0] * mask
    return each.sum(-1) / (mask.sum(-1) if averaged else 1), logits, mask


def pairs(loss, x, w, t, b=None, ref=None, *, beta, nll=0.0, averaged=False, nll_target=None):
    """`loss` of beta * scores of both sides; (total, metrics)."""
    logps, logits, mask = log_probs(x, w, t, b, averaged)
    score = logps if ref is None else logps - log_probs(*ref[:2], t, *ref[2:], averaged)[0]
    chosen, rejected = (beta * score).chunk(2)
    n = len(t) // 2
    target = (t if nll_target is None else nll_target)[:n]
    likelihood = F.cross_entropy(logits[:n].flatten(0, 1), target.flatten())
    total = loss(chosen, rejected).mean() + nll * likelihood
    means = [
        side.mean(-1)[m].mean() for side, m in zip(logits.chunk(2), mask.chunk(2), strict=True)
    ]
    likelihood = likelihood if nll else torch.zeros_like(total)
    return total, (*logps.chunk(2), *means, likelihood, chosen, rejected)


def sigmoid(chosen, rejected, smoothing=0.0, margin=0.0):
    z = chosen - rejected - margin
    return -(1 - smoothing) * F.logsigmoid(z) - smoothing * F.logsigmoid(-z)


def odds(chosen, rejected):
    return (chosen - rejected) - (torch.log1p(-chosen.exp()) - torch.log1p(-rejected.exp()))


def kto(x, w, t, desirable, b=None, ref=None, kl=0.0, *, beta=0.1):
    logps, logits, mask = log_probs(x, w, t, b)
    score = logps if ref is None else logps - log_probs(*ref[:2], t, *ref[2:])[0]
    sign = torch.where(desirable, 1.0, -1.0)
    loss = (1 - torch.sigmoid(beta * (score - kl) * sign)).mean()
    summed = (logits * mask[..., None]).sum((-1, -2))
    sides = [(v * side).sum() for v in (logps, summed, beta * score)
             for side in (desirable, ~desirable)]  # fmt: skip
    return loss, tuple(sides)


def grpo(x, w, t, mask, adv, b=None, ref=None, old=None, *, kind="dapo", beta=0.04, level="token",
         low=0.2, high=0.2, delta=None, temperature=1.0, length=None, ratio=None, items=None,
         corrected=False, tau=(1.0, 1.05)):  # fmt: skip
    logits = F.linear(x, w, b) / temperature
    logp = logits.log_softmax(-1).gather(-1, t[..., None])[..., 0]
    m, a = mask.to(logp), adv[:, None]
    log_r = logp - (logp.detach() if old is None else old)
    if level == "sequence":
        log_r = ((log_r * m).sum(-1) / m.sum(-1))[:, None]
    r = log_r.exp()
    clipped = ((r < 1 - low) & (a < 0)) | ((r > 1 + high) & (a > 0))
    if kind == "cispo":
        clipped = (r > high) & (a > 0)
        each = -r.detach().clamp(max=high) * a * logp
    elif kind == "sapo":
        t_ = torch.where(a > 0, *tau)
        each, clipped = -4 / t_ * torch.sigmoid(t_ * (r - 1)) * a, torch.zeros_like(clipped)
    else:
        bounded = r if delta is None else r.clamp(max=delta)
        each = -torch.minimum(bounded * a, r.clamp(1 - low, 1 + high) * a)
    each = each if ratio is None else each * ratio
    kl = torch.zeros_like(logp)
    if ref is not None:
        kl = (ref - logp).exp() - (ref - logp) - 1
        kl = kl * r if corrected else kl
        each = each + beta * kl
    each = each * m
    rows, n = len(t), m.sum()
    total = {
        "grpo": (each.sum(-1) / m.sum(-1)).mean(), "sapo": (each.sum(-1) / m.sum(-1)).mean(),
        "bnpo": each.sum() / n, "luspo": each.sum() / rows,
        "dr_grpo": each.sum() / (rows * length) if length else None,
    }.get(kind, each.sum() / (n if items is None else items))  # fmt: skip
    share = (
        (clipped.double() * m).sum() / n if clipped.shape == m.shape else clipped.double().mean()
    )
    return total, ((kl * m).sum() / n, share) if beta else (share,)


def distillation(soft, x, w, y, v, t, b=None, c=None, *, hard=0.5, weight=0.5, temperature=1.0):
    z, teacher, m = F.linear(x, w, b), F.linear(y, v, c), t != -100
    more = teacher.shape[-1] - z.shape[-1]
    each = soft(F.pad(z / temperature, (0, more)), teacher / temperature)
    mean = (each * m).sum() / m.sum()
    likelihood = F.cross_entropy(z, t)
    return weight * mean + hard * likelihood, mean, likelihood


def jsd(z, y, beta=0.5):
    q, p = z.log_softmax(-1), y.log_softmax(-1)
    if beta in (0.0, 1.0):
        a, b = (p, q) if beta == 0.0 else (q, p)
        return (a.exp() * (a - b)).sum(-1)
    m = (beta * p.exp() + (1 - beta) * q.exp()).log()
    return (beta * p.exp() * (p - m) + (1 - beta) * q.exp() * (q - m)).sum(-1)
