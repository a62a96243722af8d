"""Every loss in one call, its settings and its tensors together:

    linear_dpo_loss(x, W, target, beta=0.1, ref_log_probs=r)

is `LinearDPOLoss(beta=0.1)(x, W, target, ref_log_probs=r)`. Names tell them apart.
"""

import inspect
from collections.abc import Callable
from typing import Any

from torch import Tensor

from .linear import LinearLoss, LossOutput
from .linear_cpo import LinearCPOLoss, LinearSimPOLoss
from .linear_distillation import LinearDistillationLoss
from .linear_dpo import LinearDPOLoss
from .linear_grpo import LinearGRPOLoss
from .linear_kto import LinearKTOLoss
from .linear_orpo import LinearORPOLoss

__all__ = [
    "linear_cpo_loss", "linear_distillation_loss", "linear_dpo_loss", "linear_grpo_loss",
    "linear_kto_loss", "linear_orpo_loss", "linear_simpo_loss",
]  # fmt: skip


def in_one_call(loss: type[LinearLoss], name: str) -> Callable[..., LossOutput]:
    of_call = inspect.signature(loss.forward).parameters

    def function(
        input: Tensor, linear_weight: Tensor, target: Tensor, **arguments: Any
    ) -> LossOutput:
        settings = {name: value for name, value in arguments.items() if name not in of_call}
        tensors = {name: value for name, value in arguments.items() if name in of_call}
        return loss(**settings)(input, linear_weight, target, **tensors)

    function.__name__ = function.__qualname__ = name
    function.__doc__ = f"`{loss.__name__}` in one call: its settings and the tensors of its call."
    return function


linear_cpo_loss = in_one_call(LinearCPOLoss, "linear_cpo_loss")
linear_distillation_loss = in_one_call(LinearDistillationLoss, "linear_distillation_loss")
linear_dpo_loss = in_one_call(LinearDPOLoss, "linear_dpo_loss")
linear_grpo_loss = in_one_call(LinearGRPOLoss, "linear_grpo_loss")
linear_kto_loss = in_one_call(LinearKTOLoss, "linear_kto_loss")
linear_orpo_loss = in_one_call(LinearORPOLoss, "linear_orpo_loss")
linear_simpo_loss = in_one_call(LinearSimPOLoss, "linear_simpo_loss")
