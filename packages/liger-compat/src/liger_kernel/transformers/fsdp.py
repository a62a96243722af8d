"""Call a method of what FSDP (the first one) has wrapped, inside its forward."""

from collections.abc import Callable
from typing import Any

from torch.distributed.fsdp import FullyShardedDataParallel

__all__ = ["_FSDPForwardRedirection"]


class _FSDPForwardRedirection:
    """redirect(wrapper, method, *args) is method(*args), with the wrapper's parameters gathered:
    the wrapper is called, whose module's forward is `method` for this one call.
    """

    def __call__(
        self, wrapper_module: FullyShardedDataParallel, method: Callable[..., Any], *args: Any,
        **kwargs: Any,
    ) -> Any:  # fmt: skip
        module = wrapper_module.module
        original = module.forward

        def once(*args: Any, **kwargs: Any) -> Any:
            module.forward = original
            return method(*args, **kwargs)

        module.forward = once
        return wrapper_module(*args, **kwargs)
