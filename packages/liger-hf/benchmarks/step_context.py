"""The longest sequence whose training step fits into the memory of the GPU."""

import gc
import math
import time
from collections.abc import Callable
from typing import Any

import torch
from step_models import build, inputs

__all__ = ["CONTEXTS", "longest", "measure_context"]

# what is measured, (variant, gradient checkpointing): the cheap ones leave their time to the others
CONTEXTS = tuple(
    (variant, checkpointing)
    for variant in ("eager", "liger-kernel", "ours")
    for checkpointing in (False, True)
)
# tokens; attention makes a step of the limit take half a minute
STEP, LIMIT = 4096, 524288
SMALL_STEP, SMALL_LIMIT, SMALL_FITS = 16, 256, 100
# tokens at which causal attention takes as long as all other products, of 4 layers of Llama-3-8B
CROSSING = 40_000


def longest(
    fits: Callable[[int], bool | None], guess: int, step: int, limit: int
) -> tuple[int, int | None]:
    """The largest multiple of `step` up to `limit` that fits, and the smallest that does not.

    From the guess by doubling distances, then by bisection. `fits` answers None where it may try no
    longer; what is known then is the result. Lengths that are not known: 0 and None.
    """
    good, bad = 0, None
    here, distance, last = max(guess // step, 1), 1, limit // step
    here = min(here, last)
    while good < last and (bad is None or bad - good > 1):
        answer = fits(here * step)
        if answer is None:
            break
        if answer:
            good = here
        else:
            bad = here
        if bad is None:
            here = min(good + distance, last)
        elif not good:
            here = max(bad - distance, 1)
        else:
            here = (good + bad) // 2
        distance *= 2
    return good * step, None if bad is None else bad * step


def measure_context(
    model_name: str, variant: str, checkpointing: bool, seconds: float, small: bool
) -> dict[str, Any]:
    """`tokens` of the longest sequence that trains, `too_long` of the shortest that fails, or None.

    A batch of one, forward, backward and AdamW. Lengths are multiples of `resolution`. The peaks of
    two short ones, which grow linearly, give the guess; after `seconds` no other length is tried.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    trial = Trial(model_name, variant, checkpointing, small, device)
    start = time.perf_counter()
    if small:
        guess, step, limit = SMALL_STEP, SMALL_STEP, SMALL_LIMIT
    else:
        guess, step, limit = trial.guess(8 * STEP, 12 * STEP), STEP, LIMIT

    def fits(length: int) -> bool | None:
        left = seconds - (time.perf_counter() - start)
        return None if trial.expected(length) > left else trial.fits(length)

    # what is known to fit, should there be no time for the guess
    affordable = trial.affordable(seconds - (time.perf_counter() - start))
    tokens, too_long = longest(fits, min(guess, affordable), step, limit)
    return {
        "tokens": max(tokens, trial.best),
        "too_long": too_long,
        "resolution": step,
        "seconds": round(time.perf_counter() - start, 1),
    }


def _cost(length: int) -> float:
    return length * (1.0 + length / CROSSING)


class Trial:
    """Steps of one patched model at any length; what they took.

    Attributes:
        best: the longest that fitted, and `duration`, its seconds.
    """

    def __init__(
        self, model_name: str, variant: str, checkpointing: bool, small: bool, device: torch.device
    ):
        self.name, self.small, self.device = model_name, small, device
        self.model, _ = build(model_name, variant, small, device)
        if checkpointing:
            self.model.gradient_checkpointing_enable({"use_reentrant": False})
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-4, fused=True)
        self.best, self.duration = 0, 0.0

    def fits(self, length: int) -> bool:
        start = time.perf_counter()
        try:
            self._step(length)
            fitted = True
        except torch.OutOfMemoryError:
            fitted = False
        # past the except clause, whose traceback holds the tensors of the step
        self.optimizer.zero_grad()
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        if fitted and length > self.best:
            self.best, self.duration = length, time.perf_counter() - start
        return fitted

    def guess(self, first: int, second: int) -> int:
        """From the peaks at two lengths and the memory that there is."""
        peaks = []
        # the first step of all also makes the states of the optimizer, and compiles
        for length in (first, first, second):
            torch.cuda.reset_peak_memory_stats(self.device)
            if not self.fits(length):
                return first
            peaks.append(torch.cuda.max_memory_allocated(self.device))
        a_token = max(peaks[2] - peaks[1], 1) / (second - first)
        available = torch.cuda.mem_get_info(self.device)[0] + torch.cuda.memory_reserved(
            self.device
        )
        # the allocator leaves gaps
        return int(second + (0.995 * available - peaks[2]) / a_token)

    def expected(self, length: int) -> float:
        """Seconds of a step."""
        return self.duration * _cost(length) / _cost(self.best) if self.best else 0.0

    def affordable(self, seconds: float) -> int:
        """The length of a step that takes so long."""
        if not self.best:
            return LIMIT
        cost = max(seconds, 0.0) / self.duration * _cost(self.best)
        return int((math.sqrt(1.0 + 4.0 * cost / CROSSING) - 1.0) * CROSSING / 2.0)

    def _step(self, length: int) -> None:
        if self.small and length > SMALL_FITS:
            raise torch.OutOfMemoryError(f"{length} tokens are more than {SMALL_FITS}")
        self.model(**inputs(self.name, self.model, 1, length, self.small)).loss.backward()
        self.optimizer.step()
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
