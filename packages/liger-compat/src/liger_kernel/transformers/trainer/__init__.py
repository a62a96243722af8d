"""The trainer of the library is of releases of TRL that are gone."""

from .orpo_trainer import LigerORPOTrainer as LigerORPOTrainer

__all__ = ["LigerORPOTrainer"]
