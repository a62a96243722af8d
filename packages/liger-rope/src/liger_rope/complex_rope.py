"""Rotary position embedding by complex numbers, as Llama 4 and DeepSeek V2 write it.

    y = x * freqs,    x1 + i x2 a pair of neighbouring elements

Computed in fp32, in fp64 for fp64 inputs, and rounded once.

    q [B, HQ, T, D]; k [B, HK, T, D] or none; freqs [B or 1, T, R / 2], complex; any strides
    dx = dy * conj(freqs)

Source: Su et al. 2021, arXiv:2104.09864; the kernel is in rotation.py.
"""

import torch
from liger_core.device import use_kernels
from torch import Tensor

from .checks import check
from .rope import rope_ref
from .rotation import Rotation, rotate

__all__ = ["complex_rope", "complex_rope_ref"]

ROTATION = Rotation("interleaved", "interleaved", "complex")


def complex_rope_ref(
    q: Tensor, k: Tensor | None, freqs: Tensor, *, unsqueeze_dim: int = 1
) -> tuple[Tensor, Tensor | None]:
    freqs, R = freqs.unsqueeze(unsqueeze_dim), 2 * freqs.shape[-1]

    def rotate(x: Tensor) -> Tensor:
        wide = torch.promote_types(x.dtype, torch.float32)
        pairs = x[..., :R].to(wide).unflatten(-1, (-1, 2)).contiguous()
        y = torch.view_as_complex(pairs) * freqs
        turned = torch.stack((y.real, y.imag), -1).flatten(-2)
        return torch.cat((turned.to(x.dtype), x[..., R:]), -1)

    return rotate(q), None if k is None else rotate(k)


def complex_rope(
    q: Tensor, k: Tensor | None, freqs: Tensor, *, unsqueeze_dim: int = 1
) -> tuple[Tensor, Tensor | None]:
    """Rotary position embedding: pairs of neighbours as complex numbers, times `freqs`.

    Args:
        q: [B, HQ, T, D], [B, T, HQ, D], or without B; float16, bfloat16, float32 or float64; any
            strides.
        k: likewise with HK heads, or None.
        freqs: [B or 1, T, R / 2] or [T, R / 2], R at most D; complex64 or complex128, no gradient.
            Dimensions of q and k beyond R pass through.
        unsqueeze_dim: where freqs gets the dimension of the heads to fit q: for [B, T, R / 2] 1 as
            in deepseek_v2, or 2 as in llama4; for [T, R / 2] and q [B, T, HQ, D] 1, as in the
            vision part of llama4.

    Returns:
        (q, k) rotated, new tensors in the dtypes of q and k, computed in fp32, or fp64 where one of
        the tensors is, and rounded once; k None where it was None.

    Raises:
        ValueError: shapes or devices that do not fit, `freqs` that require a gradient.
        TypeError: an unsupported dtype.

    Peak memory: twice that of q and k, for results and gradients.

    Source: Su et al. 2021, arXiv:2104.09864.
    """
    if freqs.ndim < 2:
        raise ValueError(f"complex_rope: freqs {tuple(freqs.shape)} must be [.., T, R / 2]")
    rows, R = freqs.shape[:-1], 2 * freqs.shape[-1]
    head_dim = check("complex_rope", q, k, {"freqs": freqs}, rows, R, unsqueeze_dim)
    freqs = freqs.resolve_conj()
    if use_kernels(q):
        columns = torch.view_as_real(freqs).flatten(-2)
        return rotate(q, k, columns, None, None, head_dim, ROTATION)
    # real arithmetic, since the bits of a complex product depend on where an element lies
    return rope_ref(
        q,
        k,
        freqs.real,
        freqs.imag,
        unsqueeze_dim=unsqueeze_dim,
        layout="interleaved",
        table_layout="pairs",
    )
