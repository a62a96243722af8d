"""The functions that choose an implementation in the library. Here the device decides: the keywords
`impl`, `mode` and `backend` are accepted, without effect.
"""

import functools
import inspect
from collections.abc import Callable
from typing import Any

from .ops.functions import TABLE

__all__ = [
    "cross_entropy", "fused_add_rms_norm", "fused_linear_cross_entropy", "fused_linear_jsd",
    "geglu", "jsd", "kl_div", "layer_norm", "rms_norm", "rope", "softmax", "swiglu",
]  # fmt: skip

CHOICES = ("impl", "mode", "backend")


def _front(where: str, name: str, *renamed: str, **defaults: Any) -> Callable[..., Any]:
    """What an autograd Function applies, its first parameters renamed, with other defaults."""
    function = TABLE[where, name]
    own = list(inspect.signature(function).parameters.values())
    names = [*renamed, *(p.name for p in own[len(renamed) :])]
    keyword = inspect.Parameter.KEYWORD_ONLY
    parameters = [
        p.replace(name=name, default=defaults.get(name, p.default))
        for name, p in zip(names, own, strict=True)
    ]
    parameters += [inspect.Parameter(choice, keyword, default=None) for choice in CHOICES]
    known = inspect.Signature(parameters)

    @functools.wraps(function)
    def front(*args: Any, **kwargs: Any) -> Any:
        bound = known.bind(*args, **kwargs)
        bound.apply_defaults()
        return function(*(bound.arguments[name] for name in names))

    front.__name__ = front.__qualname__ = where
    front.__signature__ = known  # type: ignore[attr-defined]
    return front


cross_entropy = _front("cross_entropy", "LigerCrossEntropyFunction", "input")
fused_add_rms_norm = _front(
    "fused_add_rms_norm", "LigerFusedAddRMSNormFunction", eps=1e-6, in_place=False
)
fused_linear_cross_entropy = _front(
    "fused_linear_cross_entropy", "LigerFusedLinearCrossEntropyFunction"
)
fused_linear_jsd = _front("fused_linear_jsd", "LigerFusedLinearJSDFunction")
geglu = _front("geglu", "LigerGELUMulFunction")
jsd = _front("jsd", "LigerJSDFunction")
kl_div = _front("kl_div", "LigerKLDivLossFunction")
layer_norm = _front(
    "layer_norm", "LigerLayerNormFunction", "x", "weight", "bias", bias=None, eps=1e-6
)
rms_norm = _front("rms_norm", "LigerRMSNormFunction", "x", "weight", eps=1e-6, in_place=False)
rope = _front("rope", "LigerRopeFunction")
softmax = _front("softmax", "LigerSoftmaxFunction")
swiglu = _front("swiglu", "LigerSiLUMulFunction")
