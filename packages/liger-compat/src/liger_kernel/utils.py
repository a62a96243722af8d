"""Which device is there."""

import functools
import importlib.util
from collections.abc import Callable
from typing import Any

import torch

__all__ = [
    "PEFT_AVAILABLE", "get_total_gpu_memory", "infer_comm_backend", "infer_device",
    "infer_device_arch", "is_npu_available", "is_peft_available", "transformers_version_dispatch",
]  # fmt: skip

PEFT_AVAILABLE = importlib.util.find_spec("peft") is not None
# compute capability, or name of the target, -> family
ARCHITECTURES = {
    (7, 0): "volta_turing", (7, 5): "volta_turing", (8, 0): "ampere_ada", (8, 6): "ampere_ada",
    (8, 9): "ampere_ada", (9, 0): "hopper", (10, 0): "blackwell", (10, 3): "blackwell_ultra",
    (12, 0): "blackwell_consumer", "gfx908": "cdna", "gfx90a": "cdna2", "gfx940": "cdna3",
    "gfx941": "cdna3", "gfx942": "cdna3", "gfx1100": "rdna3", "gfx1101": "rdna3",
    "gfx1102": "rdna3",
}  # fmt: skip


def is_peft_available() -> bool:
    return PEFT_AVAILABLE


def is_npu_available() -> bool:
    return infer_device() == "npu"


def infer_device() -> str:
    """The type of the accelerator: "cuda" (AMD's too), "npu", "xpu", or "cpu" where there is
    none.
    """
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    kind = "cpu" if accelerator is None else accelerator.type
    return kind if kind in ("cuda", "npu", "xpu") else "cpu"


def infer_comm_backend() -> str:
    """The backend of torch.distributed for it."""
    by_device = {"cuda": "nccl", "npu": "hccl", "xpu": "xccl"}
    return by_device.get(infer_device(), "gloo")


@functools.cache
def infer_device_arch(device_id: int = 0) -> str:
    """The family of an accelerator, "hopper" or "cdna3"; what is not listed by its own name."""
    device = infer_device()
    if device != "cuda":
        return device
    if torch.version.hip:
        target = torch.cuda.get_device_properties(device_id).gcnArchName.split(":")[0]
        return ARCHITECTURES.get(target, target)
    major, minor = torch.cuda.get_device_capability(device_id)
    return ARCHITECTURES.get((major, minor), f"sm_{major}{minor}")


def get_total_gpu_memory() -> int:
    """GiB of the first accelerator; RuntimeError where there is none."""
    device = infer_device()
    if device == "cpu":
        raise RuntimeError("there is no accelerator")
    return getattr(torch, device).get_device_properties(0).total_memory // 1024**3


def transformers_version_dispatch(
    required_version: str, before_fn: Callable[..., Any], after_fn: Callable[..., Any],
    before_args: tuple[Any, ...] = (), after_args: tuple[Any, ...] = (),
    before_kwargs: dict[str, Any] | None = None, after_kwargs: dict[str, Any] | None = None,
) -> Any:  # fmt: skip
    """after_fn(*after_args, ...) from that version of transformers on, before_fn(...) before it."""
    import transformers
    from torch.torch_version import TorchVersion

    if TorchVersion(transformers.__version__) < required_version:
        return before_fn(*before_args, **(before_kwargs or {}))
    return after_fn(*after_args, **(after_kwargs or {}))
