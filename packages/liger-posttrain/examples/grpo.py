"""Group relative policy optimisation in a plain PyTorch loop: sample, score, step.

    python grpo.py --steps 60

The reward, the share of even tokens, rises from 0.5 to about 0.95.
"""

import argparse

import torch
from liger_posttrain import LinearGRPOLoss
from tiny_model import TinyModel, next_tokens, prompts, share_of_even

GROUPS, SAMPLES = 8, 8


def train(steps: int, loss_type: str = "dapo") -> list[float]:
    torch.manual_seed(0)
    model, reference = TinyModel(), TinyModel()
    reference.load_state_dict(model.state_dict())
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    loss_of = LinearGRPOLoss(loss_type=loss_type, beta=0.01, statistics=("entropy",))
    rewards = []
    for step in range(steps):
        ids = model.sample(prompts(GROUPS).repeat_interleave(SAMPLES, 0))
        reward = share_of_even(ids)
        group = reward.view(GROUPS, SAMPLES)
        advantages = (group - group.mean(1, keepdim=True)) / (group.std(1, keepdim=True) + 1e-4)
        with torch.no_grad():
            ref_input = reference.hidden(ids)[:, :-1]
        out = loss_of(
            model.hidden(ids)[:, :-1], model.head.weight, next_tokens(ids),
            advantages=advantages.flatten(), ref_input=ref_input,
            ref_weight=reference.head.weight,
        )  # fmt: skip
        out.loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        rewards.append(reward.mean().item())
        if step % 10 == 0 or step == steps - 1:
            logged = {name: round(value.item(), 4) for name, value in out.metrics.items()}
            print(f"step {step}: reward {rewards[-1]:.3f} {logged}")
    return rewards


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--loss-type", default="dapo", help="a row of liger_posttrain.algorithms")
    arguments = parser.parse_args()
    train(arguments.steps, arguments.loss_type)
