"""What older releases of Triton needed."""

import logging

__all__ = ["apply_liger_triton_cache_manager"]


def apply_liger_triton_cache_manager() -> None:
    """Does nothing: Triton writes its cache atomically by itself."""
    logging.getLogger(__name__).info("Triton's own cache manager is kept")
