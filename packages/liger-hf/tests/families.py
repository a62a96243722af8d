"""Tiny random models of the families that are patched in full, and a step of training."""

from collections.abc import Callable

import liger_hf
import torch
import transformers
from liger_hf.reporting import Row
from torch import Tensor, nn

VOCAB = 64

# model type -> configuration beside the shared one
FAMILIES: dict[str, dict] = {
    "llama": {"attention_bias": True, "mlp_bias": True},
    "qwen2": {"tie_word_embeddings": True},
    "qwen3": {},
    "mistral": {"sliding_window": 4},
    "gemma": {},
    "gemma2": {"final_logit_softcapping": 2.0},
    "phi3": {"partial_rotary_factor": 0.5},
    "granite": {"logits_scaling": 4.0, "residual_multiplier": 0.7},
}
# some layers have forms without a replacement yet
PARTIAL: dict[str, dict] = {"cohere": {"logit_scale": 0.5}, "olmo2": {}, "glm4": {}}

SIZES = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


def build(family: str, dtype: torch.dtype = torch.float32, **overrides) -> nn.Module:
    """A model in training mode; the same weights at every call, none of them zeros or ones."""
    settings = {**SIZES, **FAMILIES.get(family, {}), **PARTIAL.get(family, {}), **overrides}
    config = transformers.AutoConfig.for_model(family, **settings)
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model.to(dtype).train()


def tokens(batch: int = 2, length: int = 9, seed: int = 0) -> Tensor:
    return torch.randint(3, VOCAB, (batch, length), generator=torch.Generator().manual_seed(seed))


def gradients(
    model: nn.Module, loss: Callable[[nn.Module], Tensor]
) -> tuple[Tensor, dict[str, Tensor]]:
    """The loss and the gradient of every parameter that gets one."""
    model.zero_grad()
    value = loss(model)
    value.backward()
    return value.detach(), {
        n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None
    }


def assert_same_step(actual, expected, rtol: float = 1e-5) -> None:
    """Results of `gradients`: losses within rtol, gradients within rtol of the largest element."""
    torch.testing.assert_close(actual[0], expected[0], rtol=rtol, atol=0.0)
    assert actual[1].keys() == expected[1].keys()
    for name, grad in expected[1].items():
        torch.testing.assert_close(
            actual[1][name], grad, rtol=0.0, atol=rtol * grad.abs().max().item() + 1e-7
        )


def train(model: nn.Module, steps: int = 20, lr: float = 3e-3) -> Tensor:
    """Losses of AdamW on a fixed stream of batches, some labels ignored."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr)
    losses = []
    for step in range(steps):
        batch = tokens(seed=step % 4)
        labels = batch.where(batch > 8, -100)
        loss = model(input_ids=batch, labels=labels).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.detach())
    return torch.stack(losses)


def only_row(module: nn.Module, part: str) -> Row:
    """The one row of the report of a part."""
    (row,) = [row for row in liger_hf.report(module).rows if row.part == part]
    return row


def snapshot(model: nn.Module) -> dict[str, dict]:
    """Every module's own attributes, parameters and children."""
    return {
        name: {
            k: dict(v) if k in ("_parameters", "_modules", "_buffers") else v
            for k, v in vars(module).items()
        }
        for name, module in model.named_modules()
    }


def assert_same_objects(model: nn.Module, before: dict[str, dict]) -> None:
    after = snapshot(model)
    assert after.keys() == before.keys()
    for name, attributes in before.items():
        assert after[name].keys() == attributes.keys(), name
        for key, value in attributes.items():
            if isinstance(value, dict):
                assert after[name][key].keys() == value.keys()
                assert all(after[name][key][k] is v for k, v in value.items()), f"{name}.{key}"
            else:
                assert after[name][key] is value, f"{name}.{key}"
