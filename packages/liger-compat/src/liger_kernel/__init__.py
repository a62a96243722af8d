"""The import name `liger_kernel` on the Liger packages, for tools that already speak it.

Names, argument orders, defaults and return types are those of the library at version
`__version__`; what they compute is that of `liger_norms`, `liger_losses` and their siblings. No
kernel and no loss is defined here.
"""

from importlib import metadata

__version__ = "0.8.5"
__all__: list[str] = []


def _refuse_original() -> None:
    """Raises ImportError where the distribution liger-kernel is another's: both own this package,
    so that each has overwritten files of the other.
    """
    try:
        needs = metadata.requires("liger-kernel") or []
    except metadata.PackageNotFoundError:
        return
    # the alias that `python -m liger_kernel.alias` writes
    if not any(need.startswith("liger-compat") for need in needs):
        raise ImportError(
            "liger-compat provides the package liger_kernel and cannot work beside the "
            "distribution liger-kernel. Keep one of them: pip uninstall liger-kernel liger-compat, "
            "then pip install the one you want."
        )


_refuse_original()
