"""What the devices of this machine are and what Triton can do on them; nothing is queried at
import.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .lang import HAS_TRITON, INTERPRET

__all__ = ["DeviceInfo", "device_info", "num_sms", "use_kernels"]


@dataclass(frozen=True)
class DeviceInfo:
    """One device: `vendor` is nvidia, amd, intel, ascend or none; `arch` its architecture, e.g.
    sm_90 or gfx942.

    `num_sms` counts streaming multiprocessors (compute units on AMD and Intel), 0 on a CPU;
    `memory` is in bytes, 0 on a CPU.
    """

    vendor: str
    name: str
    arch: str
    num_sms: int
    memory: int


_INFO: dict[torch.device, DeviceInfo] = {}
_NUM_SMS: dict[int, int] = {}
_TRITON: dict[int, bool] = {}
# what kernels see on a CPU, in Triton's interpreter: few programs, yet more than one
_INTERPRETER_SMS = 3


def device_info(device: torch.device | str | None = None) -> DeviceInfo:
    """Describe `device` (default: the current accelerator, else the CPU). Cached per device.

    Raises:
        RuntimeError: from torch, when the device does not exist.
    """
    device = torch.device(device) if device is not None else _default_device()
    if device.type != "cpu" and device.index is None:
        device = torch.device(device.type, torch.get_device_module(device.type).current_device())
    if device not in _INFO:
        _INFO[device] = _query(device)
    return _INFO[device]


def num_sms(x: Tensor) -> int:
    """Number of programs that fill the device of `x` once: its SM count."""
    # Dynamo folds this call to a constant; it cannot trace the cache
    if torch.compiler.is_compiling() and x.is_cuda:
        return torch.cuda.get_device_properties(x.device).multi_processor_count
    index = x.get_device()
    if index not in _NUM_SMS:
        _NUM_SMS[index] = device_info(x.device).num_sms or _INTERPRETER_SMS
    return _NUM_SMS[index]


def use_kernels(x: Tensor) -> bool:
    """Whether an op on `x` launches Triton kernels; otherwise it computes through PyTorch."""
    if x.is_cuda:
        return HAS_TRITON and _has_kernels(x)
    if x.is_xpu:
        return HAS_TRITON
    return INTERPRET and x.device.type == "cpu"


def _has_kernels(x: Tensor) -> bool:
    # as in num_sms
    if torch.compiler.is_compiling():
        return _compiles(torch.cuda.get_device_properties(x.device))
    index = x.get_device()
    if index not in _TRITON:
        _TRITON[index] = _compiles(torch.cuda.get_device_properties(index))
    return _TRITON[index]


def _compiles(properties: Any) -> bool:
    """Triton's code generator for NVIDIA starts at Turing."""
    return bool(torch.version.hip) or (properties.major, properties.minor) >= (7, 5)


def _default_device() -> torch.device:
    return torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")


def _query(device: torch.device) -> DeviceInfo:
    if device.type == "cuda":
        p = torch.cuda.get_device_properties(device)
        if torch.version.hip:
            arch = p.gcnArchName.split(":")[0]
            return DeviceInfo("amd", p.name, arch, p.multi_processor_count, p.total_memory)
        arch = f"sm_{p.major}{p.minor}"
        return DeviceInfo("nvidia", p.name, arch, p.multi_processor_count, p.total_memory)
    if device.type == "xpu":
        xpu = torch.xpu.get_device_properties(device)
        return DeviceInfo("intel", xpu.name, "xpu", xpu.gpu_subslice_count, xpu.total_memory)
    if device.type == "npu":
        npu = torch.get_device_module("npu").get_device_properties(device)
        return DeviceInfo("ascend", npu.name, "npu", 0, npu.total_memory)
    return DeviceInfo("none", device.type, device.type, 0, 0)
