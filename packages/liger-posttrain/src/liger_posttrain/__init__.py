"""Preference, policy and distillation losses. This version holds no losses yet."""

__version__ = "0.1.0"
__all__: list[str] = []
