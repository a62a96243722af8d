"""Preference, policy and distillation losses of a linear head, as functions of its statistics."""

from typing import TYPE_CHECKING

from liger_core import lazy_exports

if TYPE_CHECKING:
    from .functional import (
        linear_cpo_loss as linear_cpo_loss,
        linear_distillation_loss as linear_distillation_loss,
        linear_dpo_loss as linear_dpo_loss,
        linear_grpo_loss as linear_grpo_loss,
        linear_kto_loss as linear_kto_loss,
        linear_orpo_loss as linear_orpo_loss,
        linear_simpo_loss as linear_simpo_loss,
    )
    from .linear import LossOutput as LossOutput
    from .linear_cpo import LinearCPOLoss as LinearCPOLoss, LinearSimPOLoss as LinearSimPOLoss
    from .linear_distillation import LinearDistillationLoss as LinearDistillationLoss
    from .linear_dpo import LinearDPOLoss as LinearDPOLoss
    from .linear_grpo import LinearGRPOLoss as LinearGRPOLoss
    from .linear_kto import LinearKTOLoss as LinearKTOLoss
    from .linear_orpo import LinearORPOLoss as LinearORPOLoss

__version__ = "0.1.0"
__all__ = lazy_exports(
    __name__,
    {
        "functional": (
            "linear_cpo_loss", "linear_distillation_loss", "linear_dpo_loss", "linear_grpo_loss",
            "linear_kto_loss", "linear_orpo_loss", "linear_simpo_loss",
        ),
        "linear": ("LossOutput",),
        "linear_cpo": ("LinearCPOLoss", "LinearSimPOLoss"),
        "linear_distillation": ("LinearDistillationLoss",),
        "linear_dpo": ("LinearDPOLoss",),
        "linear_grpo": ("LinearGRPOLoss",),
        "linear_kto": ("LinearKTOLoss",),
        "linear_orpo": ("LinearORPOLoss",),
    },
)  # fmt: skip
