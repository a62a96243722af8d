"""What a model does to its logits before the loss: recorded, done on real logits, or folded into
the options of a linear loss.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

__all__ = ["REPLAY", "TORCH_FUNCTIONS", "fold", "is_number"]

# what is recorded, and how it is done on real logits
REPLAY: dict[str, Callable[[Tensor, Any], Tensor]] = {
    "mul": lambda logits, number: logits * number,
    "div": lambda logits, number: logits / number,
    "tanh": lambda logits, _: logits.tanh(),
    "to": lambda logits, dtype: logits.to(dtype),
    "contiguous": lambda logits, _: logits.contiguous(),
    "classes": lambda logits, number: logits[..., :number],
}
TORCH_FUNCTIONS: dict[Any, str] = {
    torch.mul: "mul",
    torch.multiply: "mul",
    torch.div: "div",
    torch.divide: "div",
    torch.true_divide: "div",
    torch.tanh: "tanh",
}


def is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def fold(ops: tuple[tuple[str, Any], ...]) -> dict[str, Any] | None:
    """The options of a linear loss that do the same as `ops`; None where there are none.

    z = logit_scale * x, or softcap * tanh(logit_scale * x / softcap) for logits x. `classes`, where
    there is one, is the number of rows of the head's weight that are used.
    """
    scale, cap = 1.0, None
    options: dict[str, Any] = {}
    for name, value in ops:
        if name == "classes":
            options["classes"] = min(value, options.get("classes", value))
        elif name == "tanh":
            if cap is not None:
                return None
            cap = 1.0
        elif name in ("mul", "div"):
            if not value:
                return None
            factor = value if name == "mul" else 1.0 / value
            scale, cap = (scale * factor, None) if cap is None else (scale, cap * factor)
    if cap is None:
        return options | {"logit_scale": scale}
    return options | {"softcap": cap, "logit_scale": scale * cap} if cap > 0 else None
