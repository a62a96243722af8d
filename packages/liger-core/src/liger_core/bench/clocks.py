"""Clocks: device time by events with L2 flushed, host time to enqueue, peak memory."""

import gc
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch

__all__ = ["capture", "device_times", "host_times", "peak_mib", "summary"]

# several times the L2 of any GPU
_FLUSH_BYTES = 256 * 2**20
_buffers: dict[torch.device, torch.Tensor] = {}
_streams: dict[int, torch.cuda.Stream] = {}
Pass = Callable[[], Any]


def summary(samples: list[float]) -> dict[str, float]:
    """Median and spread (10th and 90th percentile) of a list of times."""
    if len(samples) < 2:
        return {"median": samples[0], "p10": samples[0], "p90": samples[0], "runs": 1}
    deciles = statistics.quantiles(samples, n=10, method="inclusive")
    return {
        "median": statistics.median(samples),
        "p10": deciles[0],
        "p90": deciles[-1],
        "runs": len(samples),
    }


def device_times(run: Pass, device: torch.device, before: Pass | None = None) -> list[float]:
    """Milliseconds of `run`, called for about 0.1 s and 10 times at least.

    `before` and the L2 flush are not timed. The device works on the flush while Python enqueues the
    run, so host work counts only where it is longer than that.
    """
    clock = _cuda_times if device.type == "cuda" else _wall_times
    # a run already warm; the first one may still fill caches
    estimate = clock(run, device, before, 3)[-1]
    runs = int(min(200, max(10, 100 / max(estimate, 1e-3))))
    return clock(run, device, before, runs)


def _cuda_times(run: Pass, device: torch.device, before: Pass | None, runs: int) -> list[float]:
    events = [tuple(_event() for _ in range(2)) for _ in range(runs)]
    if device not in _buffers:
        _buffers[device] = torch.empty(_FLUSH_BYTES, dtype=torch.int8, device=device)
    flush = _buffers[device]
    for start, end in events:
        if before is not None:
            before()
        flush.zero_()
        start.record()
        run()
        end.record()
    torch.cuda.synchronize(device)
    return [start.elapsed_time(end) for start, end in events]


def _event() -> torch.cuda.Event:
    return torch.cuda.Event(enable_timing=True)


def _wall_times(run: Pass, device: torch.device, before: Pass | None, runs: int) -> list[float]:
    times = []
    for _ in range(runs):
        if before is not None:
            before()
        start = time.perf_counter()
        run()
        times.append((time.perf_counter() - start) * 1e3)
    return times


def host_times(
    run: Pass, device: torch.device, before: Pass | None = None, group: int = 5, groups: int = 12
) -> list[float]:
    """Microseconds until `run` returns, in groups between which the device catches up."""
    times = []
    for _ in range(groups):
        _synchronize(device)
        for _ in range(group):
            if before is not None:
                before()
            start = time.perf_counter()
            run()
            times.append((time.perf_counter() - start) * 1e6)
    _synchronize(device)
    return times


def peak_mib(run: Pass, device: torch.device) -> float | None:
    """MiB that `run` allocates above what was allocated; None on a device without the counter."""
    if device.type != "cuda":
        return None
    gc.collect()
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    resident = torch.cuda.memory_allocated(device)
    run()
    torch.cuda.synchronize(device)
    return (torch.cuda.max_memory_allocated(device) - resident) / 2**20


def capture(run: Pass, before: Pass | None = None) -> torch.cuda.CUDAGraph:
    """`run` as a CUDA graph, warmed up on the capturing side stream first."""
    # one stream for all captures: the allocator keeps freed blocks by stream
    stream = _streams.setdefault(torch.cuda.current_device(), torch.cuda.Stream())
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(2):
            if before is not None:
                before()
            run()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        run()
    return graph


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
