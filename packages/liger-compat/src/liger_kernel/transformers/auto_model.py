"""Auto class of transformers whose models come patched."""

from typing import Any

from transformers import AutoModelForCausalLM

from .monkey_patch import _apply_liger_kernel_to_instance
from .signatures import SIGNATURES, signature

__all__ = ["AutoLigerKernelForCausalLM"]

FLAGS = {name for flags in SIGNATURES.values() for name in signature(flags).parameters} - {
    "model",
    "kwargs",
}


class AutoLigerKernelForCausalLM(AutoModelForCausalLM):
    """`AutoModelForCausalLM` whose models are patched; flags of the function of their type are
    taken out of the keywords. A model in which nothing can be replaced comes as it is.
    """

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: Any, *model_args: Any, **kwargs: Any
    ) -> Any:
        flags = {name: kwargs.pop(name) for name in FLAGS & kwargs.keys()}
        return _patched(
            AutoModelForCausalLM.from_pretrained(
                pretrained_model_name_or_path, *model_args, **kwargs
            ),
            flags,
        )

    @classmethod
    def from_config(cls, config: Any, **kwargs: Any) -> Any:
        flags = {name: kwargs.pop(name) for name in FLAGS & kwargs.keys()}
        return _patched(AutoModelForCausalLM.from_config(config, **kwargs), flags)


def _patched(made: Any, flags: dict[str, Any]) -> Any:
    # with output_loading_info=True there is more than the model
    model = made[0] if isinstance(made, tuple) else made
    _apply_liger_kernel_to_instance(model, **flags)
    return made
