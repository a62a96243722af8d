"""Distillation in a plain PyTorch loop, from the head of a wider teacher.

    python distillation.py --steps 60 --on-policy

On fixed responses, or on those that the student samples (GKD).
"""

import argparse

import torch
from liger_posttrain import LinearDistillationLoss
from tiny_model import TinyModel, next_tokens, prompts, responses

BATCH = 32


def train(steps: int, loss_type: str = "jsd", on_policy: bool = False) -> list[float]:
    torch.manual_seed(0)
    student, teacher = TinyModel(64), TinyModel(96)
    # a teacher that has an opinion
    torch.nn.init.normal_(teacher.head.weight, std=0.3)
    optimizer = torch.optim.AdamW(student.parameters(), lr=1e-3)
    # with fixed responses their likelihood counts too
    loss_of = LinearDistillationLoss(loss_type=loss_type, hard_weight=0.0 if on_policy else 0.1)
    found = []
    for step in range(steps):
        asked = prompts(BATCH)
        ids = student.sample(asked) if on_policy else torch.cat([asked, responses(BATCH, 0)], 1)
        with torch.no_grad():
            ref_input = teacher.hidden(ids)[:, :-1]
        out = loss_of(
            student.hidden(ids)[:, :-1], student.head.weight, next_tokens(ids),
            ref_input=ref_input, ref_weight=teacher.head.weight,
        )  # fmt: skip
        out.loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        found.append(out.metrics["soft_loss"].item())
        if step % 10 == 0 or step == steps - 1:
            logged = {name: round(value.item(), 4) for name, value in out.metrics.items()}
            print(f"step {step}: loss {out.loss.item():.3f} {logged}")
    return found


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--loss-type", default="jsd", help="a row of DISTILLATION")
    parser.add_argument("--on-policy", action="store_true", help="responses of the student")
    arguments = parser.parse_args()
    train(arguments.steps, arguments.loss_type, arguments.on_policy)
