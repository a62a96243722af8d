"""Supervised fine-tuning in a plain PyTorch loop: the responses alone count, and what is logged.

    python sft.py --steps 60 --dft

The responses have mostly even tokens. With --dft each token's loss is weighted by its probability
(dynamic fine-tuning, arXiv:2508.05629).
"""

import argparse

import torch
from liger_losses import linear_cross_entropy_with_metrics
from tiny_model import TinyModel, next_tokens, prompts, responses

BATCH = 32


def train(steps: int, dft: bool = False) -> list[float]:
    torch.manual_seed(0)
    model = TinyModel()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    losses = []
    for step in range(steps):
        ids = torch.cat([prompts(BATCH), responses(BATCH, 0)], 1)
        # tokens of the prompts, -100, never reach a matrix product
        out = linear_cross_entropy_with_metrics(
            model.hidden(ids)[:, :-1], model.head.weight, next_tokens(ids),
            token_weight="probability" if dft else None,
        )  # fmt: skip
        out.loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(-out.log_probs.sum().item() / out.num_tokens.item())
        if step % 10 == 0 or step == steps - 1:
            print(
                f"step {step}: loss {out.loss.item():.3f} nll {losses[-1]:.3f} "
                f"accuracy {out.accuracy.item():.3f}"
            )
    return losses


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--dft", action="store_true")
    arguments = parser.parse_args()
    train(arguments.steps, arguments.dft)
