"""What other packages take from here."""

from ...missing import missing_class
from ..fsdp import _FSDPForwardRedirection as _FSDPForwardRedirection

__all__ = ["LigerORPOTrainer"]

LigerORPOTrainer = missing_class("LigerORPOTrainer", "liger-posttrain")
