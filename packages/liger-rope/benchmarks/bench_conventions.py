"""Rotary embeddings in other conventions: interleaved, partial, complex, multimodal."""

from pathlib import Path

import torch
from liger_core.bench import Family, Peer, Row
from liger_core.testing import load_module

halves = load_module(Path(__file__).with_name("bench.py"))

QWEN2, QWEN3 = (16, 24, 24), (24, 20, 20)


def interleaved_inputs(new, shape):
    """Tables as Cohere has them: each column twice."""
    given = halves.inputs(new, shape)
    for name in ("cos", "sin"):
        given[name] = given[name].chunk(2, dim=-1)[0].repeat_interleave(2, dim=-1)
    return given


def partial_inputs(new, shape):
    """The first half of a head rotates."""
    B, T, heads, kv_heads, D = shape
    rotated = halves.inputs(new, (B, T, heads, kv_heads, D // 2))
    q, k = new.normal(B, T, heads, D), new.normal(B, T, kv_heads, D)
    return {**rotated, "q": q.transpose(1, 2), "k": k.transpose(1, 2)}


def complex_inputs(new, shape):
    """Tokens before heads, as in Llama 4."""
    given = halves.inputs(new, shape)
    angle = torch.arange(shape[1], device=given["q"].device)[:, None] * 500000.0 ** (
        -torch.arange(0, shape[-1], 2, device=given["q"].device) / shape[-1]
    )
    freqs = torch.polar(torch.ones_like(angle), angle)[None]
    return {"q": given["q"].transpose(1, 2), "k": given["k"].transpose(1, 2), "freqs": freqs}


def multimodal_inputs(new, shape):
    """Patches of a row of pictures: width counts fastest, time slowest."""
    given = halves.inputs(new, shape)
    token = torch.arange(shape[1], device=given["q"].device)
    for name in ("cos", "sin"):
        table = given[name][0]
        given[name] = torch.stack([table[token // n % 64] for n in (1024, 32, 1)])[:, None]
    return given


def eager_interleaved():
    def neighbours(x):
        return torch.stack((-x[..., 1::2], x[..., ::2]), dim=-1).flatten(-2)

    def rope(q, k, cos, sin):
        cos, sin = cos.unsqueeze(1), sin.unsqueeze(1)
        return tuple((x.float() * cos + neighbours(x).float() * sin).to(x.dtype) for x in (q, k))

    return rope


def eager_partial():
    rotate = halves.eager()

    def rope(q, k, cos, sin):
        R = cos.shape[-1]
        turned = rotate(q[..., :R], k[..., :R], cos, sin)
        return tuple(
            torch.cat((y, x[..., R:]), dim=-1) for x, y in zip((q, k), turned, strict=True)
        )

    return rope


def eager_complex():
    def rope(q, k, freqs):
        freqs = freqs[:, :, None]
        pairs = [torch.view_as_complex(x.float().unflatten(-1, (-1, 2))) for x in (q, k)]
        return tuple(torch.view_as_real(x * freqs).flatten(3).to(q.dtype) for x in pairs)

    return rope


def chunked(table, sections):
    parts = table.split((*sections, *sections), dim=-1)
    return torch.cat([part[i % 3] for i, part in enumerate(parts)], dim=-1)


def cycled(table, sections):
    half = table[..., : sum(sections)]
    result = half[0].clone()
    for axis in (1, 2):
        places = slice(axis, 3 * sections[axis], 3)
        result[..., places] = half[axis][..., places]
    return torch.cat((result, result), dim=-1)


def eager_multimodal(build, sections):
    def load():
        rotate = halves.eager()
        return lambda q, k, cos, sin: rotate(q, k, build(cos, sections), build(sin, sections))

    return load


def liger_complex():
    from liger_kernel.transformers.llama4_rope import liger_llama4_text_rotary_pos_emb

    return lambda q, k, freqs: liger_llama4_text_rotary_pos_emb(q, k, freqs)


def liger_multimodal():
    from liger_kernel.transformers.functional import liger_qwen2vl_mrope

    return lambda q, k, cos, sin: liger_qwen2vl_mrope(q, k, cos, sin, list(QWEN2))


def tables_of_each_sequence(given):
    """cos and sin as [3, B, T, D]: liger-kernel's kernel knows no batch of one for all."""
    B = len(given["q"])
    return given | {name: given[name].expand(-1, B, -1, -1).contiguous() for name in ("cos", "sin")}


def _pairwise(rotary, by_token):
    """A function of [B, T, heads, D] with an option `interleaved`, on q and k one by one."""

    def rope(q, k, cos, sin):
        if not by_token:
            return tuple(rotary(x, cos, sin, interleaved=True) for x in (q, k))
        return tuple(
            rotary(x.transpose(1, 2), cos, sin, interleaved=True).transpose(1, 2) for x in (q, k)
        )

    return rope


def quack(by_token):
    def load():
        from quack.rotary import apply_rotary_emb

        return _pairwise(apply_rotary_emb, by_token)

    return load


def fla(by_token):
    def load():
        from fla.modules.rotary.ops import rotary_embedding

        return _pairwise(rotary_embedding, by_token)

    return load


def one_column_each(given):
    """cos and sin as [T, D / 2], from columns that come twice."""
    return given | {name: given[name][0, :, ::2].contiguous() for name in ("cos", "sin")}


def real_tables(given):
    """cos and sin as [T, D / 2] in the dtype of q, from complex numbers."""
    freqs, dtype = given["freqs"][0], given["q"].dtype
    return {
        "q": given["q"],
        "k": given["k"],
        "cos": freqs.real.to(dtype).contiguous(),
        "sin": freqs.imag.to(dtype).contiguous(),
    }


SMALL = (2, 16, 4, 2, 16)
SHARED = {"traffic": halves.traffic, "shape": halves.LLAMA, "small": SMALL}


def peers(eager, *others):
    return (Peer("eager", eager), *others)


FAMILY = Family(
    rows=(
        Row(
            "rope_layouts",
            name="rope, interleaved",
            options={"layout": "interleaved"},
            inputs=interleaved_inputs,
            **SHARED,
        ),
        Row("rope", name="rope, half of a head", inputs=partial_inputs, **SHARED),
        Row("complex_rope", inputs=complex_inputs, **SHARED),
        Row(
            "multimodal_rope",
            options={"sections": QWEN2},
            inputs=multimodal_inputs,
            **SHARED | {"small": (2, 16, 4, 2, 128)},
        ),
        Row(
            "multimodal_rope",
            name="multimodal_rope, interleaved",
            options={"sections": QWEN3, "interleaved": True},
            inputs=multimodal_inputs,
            **SHARED | {"small": (2, 16, 4, 2, 128)},
        ),
    ),
    # liger-kernel writes q and k, and the incoming gradients
    peers={
        "rope, interleaved": peers(
            eager_interleaved,
            Peer("quack", quack(True), "quack-kernels", prepare=one_column_each),
            Peer("fla", fla(True), "fla-core", prepare=one_column_each),
        ),
        "rope, half of a head": peers(
            eager_partial,
            Peer("liger-kernel", halves.liger_kernel, "liger-kernel", inplace=True),
            Peer("quack", halves.quack, "quack-kernels", prepare=halves.half_tables),
            Peer("fla", halves.fla, "fla-core", prepare=halves.half_tables),
        ),
        "complex_rope": peers(
            eager_complex,
            Peer("liger-kernel", liger_complex, "liger-kernel", inplace=True),
            Peer("quack", quack(False), "quack-kernels", prepare=real_tables),
            Peer("fla", fla(False), "fla-core", prepare=real_tables),
        ),
        "multimodal_rope": peers(
            eager_multimodal(chunked, QWEN2),
            Peer(
                "liger-kernel",
                liger_multimodal,
                "liger-kernel",
                prepare=tables_of_each_sequence,
                inplace=True,
            ),
        ),
        "multimodal_rope, interleaved": peers(eager_multimodal(cycled, QWEN3)),
    },
)
