"""TRL's trainers as plain functions: their loss on the full logits of a tiny Llama, for what they
compute alone. No dataset, tokenizer or accelerator: a trainer is made without its constructor.
"""

from collections import defaultdict
from types import SimpleNamespace

import torch

H, V, PAD = 16, 64, 0


def tiny_llama(seed=0):
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    config = LlamaConfig(
        hidden_size=H, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=1, vocab_size=V, tie_word_embeddings=False, initializer_range=0.5,
    )  # fmt: skip
    return LlamaForCausalLM(config).double()


class FullLogits(torch.nn.Module):
    """A model as TRL calls it, whose head's outputs come from logits that exist."""

    is_gradient_checkpointing = False

    def __init__(self, model, dtype=torch.float64):
        super().__init__()
        self.model, self.config, self.dtype = model, model.config, dtype

    def forward(self, input_ids, attention_mask, labels=None, fused_lm_head=False, **_):
        out = self.model(input_ids=input_ids, attention_mask=attention_mask)
        if not fused_lm_head:
            return out
        z, labels = out.logits[:, :-1].to(self.dtype), labels[:, 1:]
        counts = labels != -100
        log_p = z.log_softmax(-1)
        p = log_p.exp()
        shown = {
            "log_probs": log_p.gather(-1, labels.where(counts, 0)[..., None])[..., 0],
            "entropy": -(p * log_p).sum(-1),
            "log_sum_sq_probs": p.square().sum(-1).log(),
            "mean_logits": z.mean(-1),
            "is_top1": z.argmax(-1) == labels,
        }
        return SimpleNamespace(**{name: t.where(counts, 0) for name, t in shown.items()})


class Alone:
    """An accelerator of one process."""

    device, num_processes, sync_gradients = torch.device("cpu"), 1, True

    def gather(self, t):
        return t

    gather_for_metrics = gather

    def reduce(self, t, reduction="sum"):
        return t

    def pad_across_processes(self, t, **_):
        return t

    def unwrap_model(self, model):
        return model


def trainer(cls, model, ref_model, dtype=torch.float64, **attributes):
    made = cls.__new__(cls)
    made.model, made.ref_model = (FullLogits(m, dtype) for m in (model, ref_model))
    made.accelerator = Alone()
    made._metrics = {"train": defaultdict(list), "eval": defaultdict(list)}
    made._total_train_tokens, made._tp_size, made.aux_loss_enabled = 0, 1, False
    for name, value in attributes.items():
        setattr(made, name, value)
    return made


def batch(rows, T=9, seed=1, shortest=2):
    """Token ids, attention and completion masks [rows, T], padded on the right."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(1, V, (rows, T), generator=generator)
    lengths = torch.randint(3 + shortest, T + 1, (rows, 1), generator=generator)
    lengths[0] = T
    at = torch.arange(T)
    attention = (at < lengths).long()
    return ids.where(attention == 1, PAD), attention, (attention * (at >= 3)).long()


def hidden_of(model, ids, attention):
    """What the head sees for each next token, [rows, T - 1, H]."""
    return model.model(input_ids=ids, attention_mask=attention).last_hidden_state[:, :-1]


def gradients(loss, model):
    names, leaves = zip(*model.named_parameters(), strict=True)
    found = torch.autograd.grad(loss, leaves, allow_unused=True)
    return {n: g for n, g in zip(names, found, strict=True) if g is not None}


def assert_same(ours, theirs, model, metrics=None, expected=None, tolerance=1e-6):
    """Losses, gradients of every parameter, and metrics."""
    torch.testing.assert_close(ours, theirs.to(ours.dtype), rtol=tolerance, atol=1e-8)
    left, right = gradients(ours, model), gradients(theirs, model)
    assert left.keys() == right.keys()
    for name in left:
        # the norms of the model compute in fp32
        assert (left[name] - right[name]).norm() <= tolerance * right[name].norm(), name
    for name, value in (expected or {}).items():
        assert abs(metrics[name].item() - value) <= tolerance * max(1.0, abs(value)), name
