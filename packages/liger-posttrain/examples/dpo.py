"""Direct preference optimisation in a plain PyTorch loop: pairs of responses, a reference model.

    python dpo.py --steps 60

The chosen responses have mostly even tokens, the rejected ones mostly odd ones.
"""

import argparse

import torch
from liger_posttrain import LinearDPOLoss
from tiny_model import TinyModel, next_tokens, prompts, responses

PAIRS = 16


def train(steps: int, loss_type: str = "sigmoid") -> list[float]:
    torch.manual_seed(0)
    model, reference = TinyModel(), TinyModel()
    reference.load_state_dict(model.state_dict())
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    loss_of = LinearDPOLoss(loss_type=loss_type, beta=0.1)
    losses = []
    for step in range(steps):
        # chosen rows first, then the rejected ones
        answers = torch.cat([responses(PAIRS, 0), responses(PAIRS, 1)])
        ids = torch.cat([prompts(PAIRS).repeat(2, 1), answers], 1)
        with torch.no_grad():
            ref_input = reference.hidden(ids)[:, :-1]
        out = loss_of(
            model.hidden(ids)[:, :-1], model.head.weight, next_tokens(ids), ref_input=ref_input,
            ref_weight=reference.head.weight,
        )  # fmt: skip
        out.loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(out.loss.item())
        if step % 10 == 0 or step == steps - 1:
            logged = {name: round(value.item(), 4) for name, value in out.metrics.items()}
            print(f"step {step}: loss {losses[-1]:.3f} {logged}")
    return losses


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--loss-type", default="sigmoid", help="a row of PAIR_LOSSES")
    arguments = parser.parse_args()
    train(arguments.steps, arguments.loss_type)
