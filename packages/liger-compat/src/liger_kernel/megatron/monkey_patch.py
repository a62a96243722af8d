"""Put the Liger layers where Megatron-Core looks its own up; before models are made."""

import importlib
import logging
from collections.abc import Callable
from typing import Any

from .cross_entropy import LigerMegatronCrossEntropy
from .rms_norm import LigerMegatronRMSNorm
from .swiglu import LigerMegatronSwiGLU, unsupported

__all__ = ["apply_liger_kernel_to_megatron"]

logger = logging.getLogger(__name__)
MARK = "_liger_kernel"
# where Megatron releases have bound a function by `from ... import`: (module, name)
FUSED_CALLERS = (
    ("megatron.core.models.common.language_module.language_module",
     "fused_vocab_parallel_cross_entropy"),
    ("megatron.core.models.backends", "_fused_ce"),
)  # fmt: skip
UNFUSED_CALLERS = (("megatron.core.tensor_parallel", "vocab_parallel_cross_entropy"),)


def apply_liger_kernel_to_megatron(
    rms_norm: bool = True, cross_entropy: bool = False, swiglu: bool = False
) -> None:
    """Patch Megatron-Core; a second call changes nothing.

    Args:
        rms_norm: the norms of its local spec, and the last one of a transformer block where that is
            torch's.
        cross_entropy: both vocabulary-parallel cross entropies, fused and not.
        swiglu: the SwiGLU of dense MLPs and shared experts, without a bias.

    Raises ImportError where Megatron-Core, or the name that is replaced, is not there.
    """
    if rms_norm:
        _replace("megatron.core.models.backends", "LocalSpecProvider.layer_norm", _layer_norm)
        _replace("megatron.core.transformer.transformer_block", "LayerNormImpl", _block_norm)
    if cross_entropy:
        _replace(
            "megatron.core.fusions.fused_cross_entropy", "fused_vocab_parallel_cross_entropy",
            _fused_cross_entropy, FUSED_CALLERS,
        )  # fmt: skip
        _replace(
            "megatron.core.tensor_parallel.cross_entropy", "vocab_parallel_cross_entropy",
            _cross_entropy, UNFUSED_CALLERS,
        )  # fmt: skip
    if swiglu:
        _replace("megatron.core.fusions.fused_bias_swiglu", "SwiGLUFunction", _swiglu)


def _replace(
    module: str, path: str, make: Callable[[Any], Any], callers: tuple[tuple[str, str], ...] = ()
) -> None:
    """module.path = make(what was there), for callers that have it by now too."""
    *classes, name = path.split(".")
    try:
        owner: Any = importlib.import_module(module)
        for part in classes:
            owner = getattr(owner, part)
        original = getattr(owner, name)
    except (ImportError, AttributeError) as error:
        raise ImportError(f"this needs a Megatron-Core that has {module}.{path}") from error
    if getattr(original, MARK, False):
        return
    made = make(original)
    if made is original:
        return
    setattr(made, MARK, True)
    setattr(owner, name, made)
    for where, called in callers:
        try:
            caller = importlib.import_module(where)
        except ImportError:
            continue
        if getattr(caller, called, None) is original:
            setattr(caller, called, made)
    logger.info("%s.%s is Liger's", module, path)


def _layer_norm(original: Any) -> Any:
    def layer_norm(self: Any, rms_norm: bool = False, *args: Any, **kwargs: Any) -> Any:
        if rms_norm:
            return LigerMegatronRMSNorm
        return original(self, rms_norm, *args, **kwargs)

    return layer_norm


def _block_norm(original: Any) -> Any:
    from_torch = "megatron.core.transformer.torch_norm"
    if original is not getattr(importlib.import_module(from_torch), "WrappedTorchNorm", None):
        logger.info("the norm of transformer blocks is %s, which is kept", original)
        return original

    class Norm:
        """A class, since Megatron calls no function in this place."""

        def __new__(cls, config: Any, hidden_size: int, eps: float = 1e-5, **kwargs: Any) -> Any:
            rms = getattr(config, "normalization", None) == "RMSNorm"
            kind: Any = LigerMegatronRMSNorm if rms else original
            return kind(config=config, hidden_size=hidden_size, eps=eps, **kwargs)

    return Norm


def _fused_cross_entropy(original: Any) -> Any:
    loss = LigerMegatronCrossEntropy()

    def fused_vocab_parallel_cross_entropy(
        vocab_parallel_logits: Any, target: Any, tp_group: Any = None
    ) -> Any:
        return loss(vocab_parallel_logits, target, tp_group)

    return fused_vocab_parallel_cross_entropy


def _cross_entropy(original: Any) -> Any:
    def vocab_parallel_cross_entropy(
        vocab_parallel_logits: Any, target: Any, label_smoothing: float = 0.0, tp_group: Any = None
    ) -> Any:
        loss = LigerMegatronCrossEntropy(label_smoothing=label_smoothing)
        return loss(vocab_parallel_logits, target, tp_group)

    return vocab_parallel_cross_entropy


def _swiglu(original: Any) -> Any:
    class SwiGLUFunction:
        """Called as an autograd Function by Megatron's `bias_swiglu_impl`."""

        @staticmethod
        def apply(
            input: Any, fp8_input_store: bool = False, cpu_offload_input: bool = False
        ) -> Any:
            if unsupported(None, fp8_input_store, cpu_offload_input):
                return original.apply(input, fp8_input_store, cpu_offload_input)
            return LigerMegatronSwiGLU()(input)

    return SwiGLUFunction
