"""The yardstick: is an op as accurate as PyTorch?

The truth is the reference in fp64 on the very inputs of the op. Its error is compared to that of
the reference run eagerly in the op's dtype, so that no tolerance is tuned by hand: a hard case
excuses the op exactly as far as it troubles PyTorch. Two numbers are compared per tensor, because
each sees what the other misses:

- rms: |actual - truth| / |truth| in the root-mean-square norm. A lost fp32 accumulator or a second
  rounding shifts all elements a little; that shows here and nowhere else. Limit: bound x eager's,
  but not below what rounding the exact result once may cost, a quarter of an ulp, and more in a
  tensor of few elements, where the average is an accident.
- max: max |actual - truth| / max |truth|. One wrong element among many (a mask off by one, an
  unwritten tail) shifts the rms by little; it shows here. Limit: bound x eager's, but not below 2
  ulp of the largest element.

An ulp is `torch.finfo(dtype).eps` of the compared tensor's dtype. In fp32 and fp64 the floors are
wider than an ulp, since a sum over thousands of terms in another order costs more: 1e-5 (fp32) for
the max, a third of it for the rms. Where terms cancel (a gradient that is zero but for rounding)
neither the truth nor eager's luck is a scale; there the limit is eight times what the truth does
when every input and incoming gradient moves by an ulp of fp32 (fp64 in fp64). Values that are not
finite must be so in the same places, with the same sign.
"""

import math

import torch
from torch import Tensor

__all__ = ["assert_accurate", "measure", "same_bits"]

NOISE = 8.0
_FLOORS = {torch.float32: 1e-5, torch.float64: 1e-12}


def same_bits(a: Tensor | None, b: Tensor | None) -> bool:
    """Equal shape, dtype and bits; NaN equals NaN, None equals None."""
    if a is None or b is None:
        return a is b
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    return torch.equal(_bytes(a), _bytes(b))


def _bytes(x: Tensor) -> Tensor:
    # one element may claim any stride and still count as contiguous; the clone has stride 1
    return x.detach().reshape(-1).clone(memory_format=torch.contiguous_format).view(torch.uint8)


def measure(actual: Tensor, truth: Tensor) -> tuple[float, float]:
    """(rms, max) absolute error, over elements whose truth is finite in that dtype."""
    error = (actual.double() - truth)[_finite(actual, truth)]
    if not error.numel():
        return 0.0, 0.0
    return error.square().mean().sqrt().item(), error.abs().max().item()


def assert_accurate(
    name: str,
    actual: Tensor,
    eager: Tensor,
    truth: Tensor,
    bound: float = 2.0,
    moved: Tensor | None = None,
) -> None:
    """Fail unless `actual` is as close to `truth` as `eager`, up to `bound` and the floors above.

    `moved` is the truth of inputs that moved by an ulp.

    Raises:
        AssertionError: naming the tensor, both errors and the worst element.
    """
    assert actual.shape == truth.shape, (
        f"{name}: shape {tuple(actual.shape)}, expected {tuple(truth.shape)}"
    )
    assert actual.dtype == eager.dtype, f"{name}: dtype {actual.dtype}, expected {eager.dtype}"
    if not actual.is_floating_point():
        assert torch.equal(actual, truth), f"{name}: integers differ"
        return
    finite = _finite(actual, truth)
    a, b = actual[~finite], truth[~finite].to(actual.dtype)
    special = bool(((a == b) | (a.isnan() & b.isnan())).all())
    rms, worst = measure(actual, truth)
    if not special or math.isnan(worst) or math.isinf(worst):
        count = int((actual.isfinite() != finite).sum())
        raise AssertionError(
            f"{name}: NaN or infinity in the wrong place, or the wrong one "
            f"({count} of {actual.numel()} elements)"
        )
    if not finite.any():
        return
    scale_rms, scale_max = (
        truth[finite].square().mean().sqrt().item(),
        truth[finite].abs().max().item(),
    )
    floor_rms, floor_max = _floors(actual.dtype, int(finite.sum()))
    eager_rms, eager_max = measure(eager, truth)
    noise_rms, noise_max = (
        (NOISE * e for e in measure(moved, truth)) if moved is not None else (0.0, 0.0)
    )
    limit_rms = max(bound * eager_rms, floor_rms * scale_rms, noise_rms)
    limit_max = max(bound * eager_max, floor_max * scale_max, noise_max)
    if rms <= limit_rms and worst <= limit_max:
        return
    at = int((actual.double() - truth).where(finite, 0.0).abs().argmax())
    raise AssertionError(
        f"{name}: rms error {rms:.3g} (limit {limit_rms:.3g}, eager {eager_rms:.3g}), "
        f"max error {worst:.3g} (limit {limit_max:.3g}, eager {eager_max:.3g}); "
        f"worst element {_index(at, actual.shape)}: "
        f"{actual.flatten()[at].item():.9g}, truth {truth.flatten()[at].item():.9g}"
    )


def _finite(actual: Tensor, truth: Tensor) -> Tensor:
    return truth.to(actual.dtype).isfinite()


def _floors(dtype: torch.dtype, elements: int) -> tuple[float, float]:
    """(rms, max), relative."""
    if dtype in _FLOORS:
        return _FLOORS[dtype] / 3, _FLOORS[dtype]
    eps = torch.finfo(dtype).eps
    return eps * (0.25 + 1 / math.sqrt(elements)), 2 * eps


def _index(flat: int, shape: torch.Size) -> tuple[int, ...]:
    index = []
    for size in reversed(shape):
        flat, i = divmod(flat, size)
        index.append(i)
    return tuple(reversed(index))
