"""Where older releases of transformers look for it."""

from .monkey_patch import _apply_liger_kernel as _apply_liger_kernel
