"""The machine of a run: what it is, and its measured ceilings."""

import datetime
import importlib.metadata
import platform
import subprocess
from collections.abc import Callable, Iterable
from typing import Any

import torch

from ..device import device_info
from .clocks import device_times, summary

__all__ = ["copy_bandwidth", "environment", "gemm_times", "slug"]


def environment(
    device: torch.device, packages: Iterable[str], commit: str | None
) -> dict[str, Any]:
    """Names and versions that a result depends on; absent `packages` are left out."""
    names = sorted({"torch", "triton", "transformers", *packages})
    return {
        "device": device_info(device).name
        if device.type != "cpu"
        else platform.processor() or platform.machine(),
        "driver": _output(
            "nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader", "--id=0"
        ),
        "cuda": torch.version.cuda,
        "python": platform.python_version(),
        "versions": {name: version for name in names if (version := _version(name))},
        "commit": commit or _output("git", "rev-parse", "HEAD"),
        "date": datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d"),
    }


def slug(device: torch.device) -> str:
    """Short name of the device for file names: "NVIDIA H200" -> "h200"."""
    if device.type == "cpu":
        return "cpu"
    words = [
        w
        for w in device_info(device).name.lower().split()
        if w not in ("nvidia", "amd", "instinct", "intel")
    ]
    return "-".join(words[:1]) or device.type


def copy_bandwidth(device: torch.device, size: int = 2**30) -> float:
    """Bytes per second, read plus written, of a large copy within the device."""
    source = torch.randint(-128, 127, (size,), dtype=torch.int8, device=device)
    target = torch.empty_like(source)
    milliseconds = summary(device_times(lambda: target.copy_(source), device))["median"]
    return 2 * size / milliseconds * 1e3


def gemm_times(
    device: torch.device, M: int, H: int, V: int, dtype: torch.dtype = torch.bfloat16
) -> dict[str, float]:
    """Milliseconds of the three products of a linear cross entropy, each alone and in sequence.

    On random data and a real gradient of the logits: zeros would let the device clock higher. In
    sequence, as a step runs them, the device is warmer and clocks lower than for one alone.
    """
    x = torch.randn(M, H, device=device).to(dtype)
    weight = (torch.randn(V, H, device=device) * H**-0.5).to(dtype)
    dz = x @ weight.T
    for rows in dz.split(1024):
        p = rows.float().softmax(-1)
        target = torch.randint(V, (len(rows), 1), device=device)
        rows.copy_(p.scatter_add_(1, target, torch.full_like(p[:, :1], -1.0)) / M)
    z, dx, dw = torch.empty_like(dz), torch.empty_like(x), torch.empty_like(weight)
    products: dict[str, Callable[[], object]] = {
        "forward": lambda: torch.mm(x, weight.T, out=z),
        "dx": lambda: torch.mm(dz, weight, out=dx),
        "dw": lambda: torch.mm(dz.T, x, out=dw),
    }
    sequence = tuple(products.values())
    products["in sequence"] = lambda: [product() for product in sequence]
    return {
        name: summary(device_times(product, device))["median"] for name, product in products.items()
    }


def _version(name: str) -> str | None:
    try:
        return torch.__version__ if name == "torch" else importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _output(*command: str) -> str | None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip().split("\n")[0] or None
