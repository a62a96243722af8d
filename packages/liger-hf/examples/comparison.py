"""What `train_llama.py` measures of a run, and the table and plot of two runs."""

from dataclasses import dataclass
from pathlib import Path

import torch


@dataclass(frozen=True)
class Result:
    """Losses of all steps, tokens per second, bytes of memory before the steps and at the peak."""

    losses: list[float]
    speed: float
    before: int
    peak: int


def memory(device: torch.device) -> tuple[int, int]:
    """Bytes now and at the peak: of all tensors on a GPU, of the whole process (RSS) on a CPU.

    Zeros where the system does not tell.
    """
    if device.type != "cpu":
        return torch.accelerator.memory_allocated(device), torch.accelerator.max_memory_allocated(
            device
        )
    status = Path("/proc/self/status")
    if status.exists():
        # not ru_maxrss, which on Linux starts at that of the process that started this one
        fields = dict(line.split(":", 1) for line in status.read_text().splitlines())
        now, peak = (int(fields[name].split()[0]) * 1024 for name in ("VmRSS", "VmHWM"))
        return now, peak
    try:
        import resource
    except ImportError:
        return 0, 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak, peak


def table(plain: Result, patched: Result, device: torch.device) -> str:
    difference = max(abs(a - b) for a, b in zip(plain.losses, patched.losses, strict=True))
    measure = "RSS of the process" if device.type == "cpu" else f"{device.type} allocator"
    rise = [result.peak - result.before for result in (plain, patched)]
    rows = [
        ("", "plain", "patched", "patched / plain"),
        ("final loss", f"{plain.losses[-1]:.4f}", f"{patched.losses[-1]:.4f}", ""),
        ("largest difference of a step's loss", "", f"{difference:.1e}", ""),
        (
            "tokens per second",
            f"{plain.speed:,.0f}",
            f"{patched.speed:,.0f}",
            _ratio(plain.speed, patched.speed),
        ),
        (
            f"peak memory, {measure}",
            _mib(plain.peak),
            _mib(patched.peak),
            _ratio(plain.peak, patched.peak),
        ),
        ("  above the start of training", *map(_mib, rise), _ratio(*rise)),
    ]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for name, *cells in rows:
        cells = [cell.rjust(width) for cell, width in zip(cells, widths[1:], strict=True)]
        lines.append("  ".join([name.ljust(widths[0]), *cells]).rstrip())
    lines.insert(1, "-" * len(lines[0]))
    return "\n".join(lines)


def plot(plain: Result, patched: Result, entropy: float, path: Path) -> None:
    """Both loss curves, and the loss of a model that only knows the frequencies of tokens."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(8, 4.5), layout="constrained")
    steps = range(1, len(plain.losses) + 1)
    axes.plot(steps, plain.losses, label="plain", color="tab:orange", linewidth=5, alpha=0.5)
    axes.plot(steps, patched.losses, label="patched", color="tab:blue", linewidth=1.5)
    axes.axhline(entropy, color="gray", linestyle=":", label="unigram entropy")
    axes.set(xlabel="step", ylabel="loss", title="A small Llama, plain and patched by liger_hf")
    axes.legend()
    figure.savefig(path, dpi=150)


def _mib(size: int) -> str:
    return f"{size / 2**20:,.0f} MiB" if size else "not measured"


def _ratio(plain: float, patched: float) -> str:
    return f"{patched / plain:.2f}" if plain else ""
