"""`liger env`: versions, devices, and which path each op takes here."""

import importlib
import os
import pkgutil
import platform
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from .debug import debugging
from .device import DeviceInfo, device_info, use_kernels
from .lang import HAS_TRITON, triton

__all__ = ["environment", "kernel_packages", "render"]

# Liger packages without ops; the last may be another project's
NOT_KERNELS = {"liger_core", "liger_hf", "liger_kernel"}


def kernel_packages() -> list[str]:
    """Import names of the installed packages that hold ops."""
    return [name for name in _packages() if name not in NOT_KERNELS]


def environment() -> dict[str, Any]:
    """The report as plain data: `versions`, `devices`, `debug`, whether ops check labels, and `ops`
    with `path` and `reason` of each.

    Ops are judged on the current accelerator, or on the CPU where there is none.
    """
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    kind = accelerator.type if accelerator is not None else ""
    count = torch.accelerator.device_count() if kind else 0
    default = (
        torch.device(kind, torch.accelerator.current_device_index())
        if kind
        else torch.device("cpu")
    )
    return {
        "versions": _versions(),
        "devices": [_cpu(), *(_device(torch.device(kind, index)) for index in range(count))],
        "default_device": str(default),
        "debug": _debug(),
        "ops": [op for package in kernel_packages() for op in _ops(package, default)],
    }


def render(report: dict[str, Any]) -> str:
    """The report as text."""
    versions = {name: version or "not installed" for name, version in report["versions"].items()}
    devices = {}
    for device in report["devices"]:
        facts = {
            name: fact for name, fact in device.items() if fact and name not in ("device", "name")
        }
        if "memory" in facts:
            facts["memory"] = f"{facts['memory'] / 2**30:.1f} GiB"
        listed = (f"{name} {fact}" for name, fact in facts.items())
        devices[device["device"]] = ", ".join([device["name"], *listed])
    ops = {op["op"]: f"{op['path']}: {op['reason']}" for op in report["ops"]}
    sections = {
        "versions": versions,
        "devices": devices,
        "checks": {"debug": report["debug"]},
        f"ops on {report['default_device']}": ops,
    }
    width = max(len(name) for section in sections.values() for name in section)
    lines = []
    for title, section in sections.items():
        lines.append(title)
        lines += [f"  {name:<{width}}  {what}" for name, what in section.items()] or [
            "  none installed"
        ]
    return "\n".join(lines)


def _debug() -> str:
    try:
        return "on: ops wait for the device to check labels" if debugging() else "off"
    except ValueError as error:
        return _line(error)


def _packages() -> list[str]:
    # a user's own liger_train.py is no package, and must not run
    found = {module.name for module in pkgutil.iter_modules() if module.ispkg}
    return sorted(name for name in found if name.startswith("liger_"))


def _versions() -> dict[str, str | None]:
    # liger-compat has the import name of another distribution
    distributions = metadata.packages_distributions()
    ours = {
        distributions.get(name, [name.replace("_", "-")])[0]: _version_of_ours(name)
        for name in _packages()
    }
    try:
        transformers = metadata.version("transformers")
    except metadata.PackageNotFoundError:
        transformers = None
    return {
        **ours,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "triton": triton.__version__ if HAS_TRITON else None,
        "transformers": transformers,
        "platform": platform.platform(),
    }


def _version_of_ours(name: str) -> str:
    try:
        return str(getattr(importlib.import_module(name), "__version__", "without a version"))
    except Exception as error:
        return f"cannot be imported: {_line(error)}"


def _cpu() -> dict[str, Any]:
    memory = 0
    if "SC_PHYS_PAGES" in getattr(os, "sysconf_names", {}):
        memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return {
        "device": "cpu",
        "name": platform.machine(),
        "arch": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "memory": memory,
    }


def _device(device: torch.device) -> dict[str, Any]:
    info = device_info(device)
    return {
        "device": str(device),
        "name": info.name,
        "vendor": info.vendor,
        "arch": info.arch,
        "SMs": info.num_sms,
        "memory": info.memory,
        "driver": _driver(info.vendor, device),
        "CUDA": torch.version.cuda,
        "ROCm": torch.version.hip,
    }


def _driver(vendor: str, device: torch.device) -> str | None:
    """Version of the kernel driver; None where it cannot be told."""
    if vendor == "nvidia":
        command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
        except (OSError, subprocess.SubprocessError):
            return None
        return done.stdout.split("\n")[0].strip() or None
    if vendor == "amd":
        version = Path("/sys/module/amdgpu/version")
        return version.read_text().strip() if version.exists() else None
    if vendor == "intel":
        return str(torch.xpu.get_device_properties(device).driver_version)
    return None


def _ops(package: str, device: torch.device) -> list[dict[str, str]]:
    """One entry for each public function; modules go the way of their function."""
    try:
        names = importlib.import_module(package).__all__
    except Exception as error:
        return [{"op": package, "path": "none", "reason": _line(error)}]
    return [_op(package, name, device) for name in names if name[0].islower()]


def _op(package: str, name: str, device: torch.device) -> dict[str, str]:
    try:
        getattr(importlib.import_module(package), name)
    except Exception as error:
        return {"op": f"{package}.{name}", "path": "none", "reason": _line(error)}
    kernel = use_kernels(torch.empty(0, device=device))
    path = "kernel" if kernel else "PyTorch"
    return {"op": f"{package}.{name}", "path": path, "reason": _reason(kernel, device_info(device))}


def _reason(kernel: bool, info: DeviceInfo) -> str:
    cpu = info.vendor == "none"
    if kernel:
        return (
            "TRITON_INTERPRET=1, Triton's interpreter"
            if cpu
            else f"Triton on {info.vendor} {info.arch}"
        )
    if not HAS_TRITON:
        return "triton is not installed"
    if cpu:
        return "no GPU; TRITON_INTERPRET=1 would run the kernels in Triton's interpreter"
    return f"no Triton for {info.vendor} {info.arch}"


def _line(error: Exception) -> str:
    """An exception as one line."""
    return " ".join(f"{type(error).__name__}: {error}".split())
