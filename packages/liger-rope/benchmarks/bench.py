"""Rotary embedding: rows and peers of `python -m liger_core.bench run rope`."""

import torch
from liger_core.bench import Family, Peer, Row


def inputs(new, shape):
    """q and k as projections leave them: [B, T, heads, D] seen as [B, heads, T, D]."""
    B, T, heads, kv_heads, D = shape
    q, k = new.normal(B, T, heads, D), new.normal(B, T, kv_heads, D)
    angle = torch.arange(T, device=q.device)[:, None] * 500000.0 ** (
        -torch.arange(0, D, 2, device=q.device) / D
    )
    angle = torch.cat((angle, angle), dim=-1)[None]
    return {
        "q": q.transpose(1, 2),
        "k": k.transpose(1, 2),
        "cos": angle.cos().to(q.dtype),
        "sin": angle.sin().to(q.dtype),
    }


def eager():
    def rotate_half(x):
        x1, x2 = x.chunk(2, dim=-1)
        return torch.cat((-x2, x1), dim=-1)

    def rope(q, k, cos, sin):
        cos, sin = cos.unsqueeze(1), sin.unsqueeze(1)
        return q * cos + rotate_half(q) * sin, k * cos + rotate_half(k) * sin

    return rope


def liger_kernel():
    from liger_kernel.transformers.functional import liger_rope

    return lambda q, k, cos, sin: liger_rope(q, k, cos, sin)


def half_tables(given):
    """cos and sin as [T, D / 2], what quack and fla take."""
    half = given["cos"].shape[-1] // 2
    return given | {name: given[name][0, :, :half].contiguous() for name in ("cos", "sin")}


def _by_token(rotary):
    """Apply a function of [B, T, heads, D] to q and k of [B, heads, T, D]."""

    def rope(q, k, cos, sin):
        return tuple(rotary(x.transpose(1, 2), cos, sin).transpose(1, 2) for x in (q, k))

    return rope


def quack():
    from quack.rotary import apply_rotary_emb

    return _by_token(apply_rotary_emb)


def fla():
    from fla.modules.rotary.ops import rotary_embedding

    return _by_token(rotary_embedding)


def traffic(B, T, heads, kv_heads, D):
    """q and k read and written, forward and backward; cos and sin stay in L2."""
    return 4 * B * T * (heads + kv_heads) * D * 2


LLAMA, LONG = (4, 2048, 32, 8, 128), (1, 16384, 32, 8, 128)

FAMILY = Family(
    rows=(
        Row("rope", LLAMA, (2, 16, 4, 2, 16), inputs=inputs, traffic=traffic, readme=True),
        Row("rope", LONG, (1, 32, 4, 2, 16), inputs=inputs, traffic=traffic),
    ),
    peers={
        "rope": (
            Peer("eager", eager),
            # writes q and k, and the incoming gradients
            Peer("liger-kernel", liger_kernel, "liger-kernel", inplace=True),
            Peer("quack", quack, "quack-kernels", prepare=half_tables),
            Peer("fla", fla, "fla-core", prepare=half_tables),
        )
    },
)
