"""Loss curves on real text, plain and patched, beside the noise of the arithmetic itself.

The noise is what a change of the last bit does: a third run starts from weights that differ from
the others' by half a rounding step. `nox -s convergence` runs it in full.
"""

import sys
from typing import NamedTuple

import liger_hf
import torch
import transformers
from torch import Tensor

# Llama, and one that differs in norms, activation, head and attention
ARCHITECTURES = {
    "llama": {},
    "gemma2": {"head_dim": 16, "final_logit_softcapping": 30.0, "sliding_window": 32},
}
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
VOCAB = 256


class Curves(NamedTuple):
    plain: Tensor
    patched: Tensor
    nudged: Tensor

    def gap(self, other: Tensor) -> float:
        """The largest difference of curves that are smoothed over 10 steps, relative."""
        smooth = [curve.unfold(0, min(10, len(curve)), 1).mean(-1) for curve in (self.plain, other)]
        return ((smooth[0] - smooth[1]).abs() / smooth[0]).max().item()


def text() -> Tensor:
    """Bytes of what Python ships as `help()`: half a megabyte of English."""
    from pydoc_data.topics import topics

    joined = "\n".join(topics[name] for name in sorted(topics))
    return torch.frombuffer(bytearray(joined.encode()), dtype=torch.uint8).long()


def build(family: str) -> torch.nn.Module:
    sizes = {
        "vocab_size": VOCAB, "hidden_size": 64, "intermediate_size": 160, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64,
        "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
    }  # fmt: skip
    torch.manual_seed(0)
    config = transformers.AutoConfig.for_model(family, **sizes | ARCHITECTURES[family])
    return transformers.AutoModelForCausalLM.from_config(config).train()


def train(family: str, dtype: torch.dtype, steps: int, patched: bool, nudged: bool) -> Tensor:
    model, corpus = build(family), text()
    if nudged:
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.mul_(1 + torch.randn_like(parameter) * torch.finfo(dtype).eps / 2)
    model = model.to(dtype)
    if patched:
        assert not liger_hf.apply(model).refused
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, betas=(0.9, 0.95))
    generator = torch.Generator().manual_seed(1)
    losses = []
    for _ in range(steps):
        starts = torch.randint(len(corpus) - 64, (8, 1), generator=generator)
        batch = corpus[starts + torch.arange(64)]
        loss = model(input_ids=batch, labels=batch).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), max_norm=1.0)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.detach().float())
    return torch.stack(losses)


def curves(family: str, dtype: torch.dtype, steps: int) -> Curves:
    runs = ((False, False), (True, False), (False, True))
    return Curves(*(train(family, dtype, steps, *run) for run in runs))


def check(family: str, dtype: torch.dtype, steps: int) -> str:
    """A line of the table; AssertionError where the curves differ by more than noise."""
    found = curves(family, dtype, steps)
    gap, noise = found.gap(found.patched), found.gap(found.nudged)
    line = (
        f"{family:8} {str(dtype).split('.')[1]:9} loss {found.plain[0]:.3f} -> "
        f"{found.plain[-10:].mean():.3f}  patched differs by {gap:.1e}, the last bit by {noise:.1e}"
    )
    assert found.plain[-10:].mean() < 0.9 * found.plain[0], line
    assert gap <= 3 * noise + torch.finfo(dtype).eps, line
    return line


if __name__ == "__main__":
    for family in ARCHITECTURES:
        for dtype in DTYPES.values():
            print(check(family, dtype, int(sys.argv[1]) if len(sys.argv) > 1 else 200))
