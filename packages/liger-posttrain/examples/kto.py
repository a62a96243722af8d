"""Kahneman-Tversky optimisation in a plain PyTorch loop: single responses, good or bad.

    python kto.py --steps 60

The good ones have mostly even tokens, the bad ones mostly odd ones.
"""

import argparse

import torch
from liger_losses import linear_log_probs
from liger_posttrain import LinearKTOLoss
from liger_posttrain.kto import kto_baseline
from tiny_model import PROMPT, TinyModel, next_tokens, prompts, responses

BATCH = 32


@torch.no_grad()
def log_probs(model: TinyModel, ids: torch.Tensor) -> torch.Tensor:
    """Of the responses, [B]."""
    found = linear_log_probs(model.hidden(ids)[:, :-1], model.head.weight, next_tokens(ids))
    return found.log_probs.sum(-1)


def train(steps: int) -> list[float]:
    torch.manual_seed(0)
    model, reference = TinyModel(), TinyModel()
    reference.load_state_dict(model.state_dict())
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    loss_of = LinearKTOLoss(beta=0.1, undesirable_weight=1.0)
    margins = []
    for step in range(steps):
        answers = torch.cat([responses(BATCH // 2, 0), responses(BATCH // 2, 1)])
        desirable = torch.arange(BATCH) < BATCH // 2
        ids = torch.cat([prompts(BATCH), answers], 1)
        # the baseline: responses to other prompts
        mismatched = torch.cat([ids[:, :PROMPT], ids[:, PROMPT:].roll(1, 0)], 1)
        baseline = kto_baseline(log_probs(model, mismatched), log_probs(reference, mismatched))
        out = loss_of(
            model.hidden(ids)[:, :-1], model.head.weight, next_tokens(ids), desirable=desirable,
            baseline=baseline, ref_log_probs=log_probs(reference, ids),
        )  # fmt: skip
        out.loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        margins.append(out.metrics["rewards/margins"].item())
        if step % 10 == 0 or step == steps - 1:
            logged = {name: round(value.item(), 4) for name, value in out.metrics.items()}
            print(f"step {step}: loss {out.loss.item():.3f} {logged}")
    return margins


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=60)
    train(parser.parse_args().steps)
