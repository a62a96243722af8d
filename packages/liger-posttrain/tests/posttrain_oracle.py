"""Losses by the formulas of their papers, in fp64, from logits, sequence by sequence."""

import math

import torch
from torch import tensor

NEG = -100


def logsigmoid(z):
    return -torch.log1p(torch.exp(-z))


def tokens(logits, target):
    """Log-probabilities and entropies, [B, T]."""
    log_p = logits - logits.exp().sum(-1, keepdim=True).log()
    chosen = log_p.gather(-1, target.clamp(min=0)[..., None])[..., 0]
    return chosen, -(log_p.exp() * log_p).sum(-1)


def clipped(r, a, low, high):
    return -torch.minimum(r * a, r.clamp(1 - low, 1 + high) * a)


def vespo(lp, lr, a):
    k, decay = (2.0, 3.0) if a >= 0 else (3.0, 2.0)
    w = lr.sum().exp().item()
    return -(w**k) * math.exp(decay * (1 - w)) * a * lp


def sapo(lp, lr, a):
    tau = 1.0 if a > 0 else 1.05
    return -4 / tau / (1 + torch.exp(-tau * (lr.exp() - 1))) * a


def gmpo(lp, lr, a):
    bound = lr.clamp(-0.4, 0.4)
    kept = torch.minimum(lr, bound) if a > 0 else torch.maximum(lr, bound)
    return (-kept.mean().exp() * a).expand(len(lp))


def gspo_token(lp, lr, a):
    r = lr.mean().exp().detach() * (lp - lp.detach()).exp()
    return clipped(r, a, 3e-4, 4e-4)


def dual(lp, lr, a):
    ppo = clipped(lr.exp(), a, 0.2, 0.2)
    return ppo if a > 0 else torch.minimum(ppo, -3.0 * tensor(a))


# losses of the tokens of one sequence from log pi, log pi - log pi_old and A; and their mean
ALGORITHMS = {
    "grpo": (lambda lp, lr, a: clipped(lr.exp(), a, 0.2, 0.2), "sequences"),
    "bnpo": (lambda lp, lr, a: clipped(lr.exp(), a, 0.2, 0.2), "tokens"),
    "dr_grpo": (lambda lp, lr, a: clipped(lr.exp(), a, 0.2, 0.2), "budget"),
    "dapo": (lambda lp, lr, a: clipped(lr.exp(), a, 0.2, 0.28), "tokens"),
    "dual_clip": (dual, "tokens"),
    "gspo": (
        lambda lp, lr, a: clipped(lr.mean().exp(), a, 3e-4, 4e-4).expand(len(lp)), "sequences",
    ),
    "gspo_token": (gspo_token, "sequences"),
    "luspo": (
        lambda lp, lr, a: clipped(lr.mean().exp(), a, 0.2, 0.2).expand(len(lp)), "sums",
    ),
    "cispo": (lambda lp, lr, a: -lr.exp().detach().clamp(max=5.0) * a * lp, "tokens"),
    "sapo": (sapo, "sequences"),
    "vespo": (vespo, "tokens"),
    "gmpo": (gmpo, "sequences"),
    "rloo": (lambda lp, lr, a: clipped(lr.sum().exp(), a, 0.2, 0.2).expand(len(lp)), "sequences"),
    "reinforce": (lambda lp, lr, a: -a * lp, "tokens"),
}  # fmt: skip


def policy(loss_type, logits, target, old, ref, advantages, beta=0.0, entropy_coef=0.0):
    lp, entropy = tokens(logits, target)
    form, mean = ALGORITHMS[loss_type]
    sequences, bonus = [], []
    for i in range(len(target)):
        m = target[i] != NEG
        loss = form(lp[i][m], (lp - old)[i][m], advantages[i].item())
        d = (ref - lp)[i][m]
        sequences.append(loss + beta * (d.exp() - d - 1))
        bonus.append(entropy[i][m])
    sums, count = torch.stack([s.sum() for s in sequences]), sum(map(len, sequences))
    lengths = tensor([max(len(s), 1) for s in sequences])
    total = {
        "sequences": (sums / lengths).mean(),
        "sums": sums.mean(),
        "tokens": sums.sum() / count,
        "budget": sums.sum() / target.numel(),
    }[mean]
    return total - entropy_coef * torch.cat(bonus).sum() / count


def margins_sorted(c, r):
    return c.sort().values - r.sort().values


def discopop(c, r, b):
    z = b * (c - r)
    m = 1 / (1 + torch.exp(-z / 0.05))
    return (1 - m) * -logsigmoid(z) + m * torch.exp(-z)


def exo(c, r, b):
    w, e = torch.sigmoid(b * (c - r)), 1e-3
    return w * (w / (1 - e)).log() + (1 - w) * ((1 - w) / e).log()


def odds(c, r, b):
    p, q = c.exp(), r.exp()
    return -b * logsigmoid((p / (1 - p) / (q / (1 - q))).log())


# losses of pairs from sums of log-ratios c and r, lengths m and n, beta
PAIRS = {
    "sigmoid": lambda c, r, m, n, b: -logsigmoid(b * (c - r)),
    "hinge": lambda c, r, m, n, b: (1 - b * (c - r)).clamp(min=0),
    "ipo": lambda c, r, m, n, b: (c / m - r / n - 1 / (2 * b)) ** 2,
    "exo_pair": lambda c, r, m, n, b: exo(c, r, b),
    "nca_pair": lambda c, r, m, n, b: (
        -logsigmoid(b * c) - logsigmoid(-b * c) / 2 - logsigmoid(-b * r) / 2
    ),
    "robust": lambda c, r, m, n, b: -logsigmoid(b * (c - r)),
    "bco_pair": lambda c, r, m, n, b: -logsigmoid(b * c) - logsigmoid(-b * r),
    "sppo_hard": lambda c, r, m, n, b: (c - 1 / (2 * b)) ** 2 + (r + 1 / (2 * b)) ** 2,
    "aot_unpaired": lambda c, r, m, n, b: -logsigmoid(b * margins_sorted(c, r)),
    "apo_zero": lambda c, r, m, n, b: 1 - torch.sigmoid(b * c) + torch.sigmoid(b * r),
    "apo_down": lambda c, r, m, n, b: torch.sigmoid(b * c) + 1 - torch.sigmoid(b * (c - r)),
    "discopop": lambda c, r, m, n, b: discopop(c, r, b),
    "sigmoid_norm": lambda c, r, m, n, b: -logsigmoid(b * (c / m - r / n)),
    "simpo": lambda c, r, m, n, b: -logsigmoid(b * (c / m - r / n) - 0.5),
    "orpo": lambda c, r, m, n, b: odds(c / m, r / n, b),
}


def pairs(loss_type, logits, target, ref=None, beta=0.1, nll_weight=0.0):
    lp, _ = tokens(logits, target)
    mask, N = target != NEG, len(target) // 2
    # an empty pair adds nothing, but takes part in sorting
    kept = (mask[:N] | mask[N:]).any(-1) | ("aot" in loss_type)
    ref = torch.zeros_like(lp) if ref is None else ref
    c, r = ((lp * mask).sum(-1)[rows][kept] for rows in (slice(N), slice(N, None)))
    ref_c, ref_r = ((ref * mask).sum(-1)[rows][kept] for rows in (slice(N), slice(N, None)))
    if loss_type == "aot":
        losses = -logsigmoid(beta * margins_sorted(c - r, ref_c - ref_r))
    else:
        m, n = (mask.sum(-1)[rows][kept] for rows in (slice(N), slice(N, None)))
        losses = PAIRS[loss_type](c - ref_c, r - ref_r, m, n, beta)
    return losses.sum() / N - nll_weight * lp[:N][mask[:N]].mean()


UNPAIRED = {
    "kto": lambda s, y, z, b: 1 - torch.sigmoid(b * (s - z) * y),
    "apo_zero_unpaired": lambda s, y, z, b: 1 - torch.sigmoid(b * s * y),
    "bco": lambda s, y, z, b: -logsigmoid((b * s - z) * y),
}


def unpaired(loss_type, logits, target, ref, desirable, baseline, beta=0.1, weights=(1.0, 1.0)):
    lp, _ = tokens(logits, target)
    mask = target != NEG
    scores = ((lp - ref) * mask).sum(-1)
    losses = UNPAIRED[loss_type](scores, 2.0 * desirable - 1, baseline, beta)
    losses = losses * torch.where(desirable, *weights)
    return losses[mask.any(-1)].sum() / len(losses)
