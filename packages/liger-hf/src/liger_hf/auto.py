"""Auto classes of transformers whose models come patched."""

import inspect
from typing import Any

from torch import nn
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText

from .patch import apply

__all__ = ["AutoLigerKernelForCausalLM", "AutoLigerKernelForImageTextToText", "flags_in"]


def flags_in(keywords: dict[str, Any]) -> dict[str, bool]:
    """Take the flags of `apply` out of `keywords`."""
    parameters = inspect.signature(apply).parameters.values()
    names = [parameter.name for parameter in parameters if parameter.kind is parameter.KEYWORD_ONLY]
    return {name: keywords.pop(name) for name in names if name in keywords}


class _Patching:
    """`from_pretrained` and `from_config` of the auto class beside it, then `apply`."""

    @classmethod
    def from_pretrained(cls, *args: Any, **kwargs: Any) -> Any:
        """As of the class of transformers; the flags of `apply` go to `apply`."""
        return cls._patched("from_pretrained", args, kwargs)

    @classmethod
    def from_config(cls, *args: Any, **kwargs: Any) -> Any:
        """As of the class of transformers; the flags of `apply` go to `apply`."""
        return cls._patched("from_config", args, kwargs)

    @classmethod
    def _patched(cls, method: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        flags = flags_in(kwargs)
        # by its own name: code on the hub is chosen by the name of the auto class
        order = cls.__mro__
        made = getattr(order[order.index(_Patching) + 1], method)(*args, **kwargs)
        # with output_loading_info=True there is more than the model
        model: nn.Module = made[0] if isinstance(made, tuple) else made
        apply(model, **flags)
        return made


class AutoLigerKernelForCausalLM(_Patching, AutoModelForCausalLM):
    """`transformers.AutoModelForCausalLM` whose models are patched as by `liger_hf.apply`.

    Raises ValueError where nothing can be replaced, as `apply` does.
    """


class AutoLigerKernelForImageTextToText(_Patching, AutoModelForImageTextToText):
    """`transformers.AutoModelForImageTextToText` whose models are patched as by `liger_hf.apply`.

    Raises ValueError where nothing can be replaced, as `apply` does.
    """
