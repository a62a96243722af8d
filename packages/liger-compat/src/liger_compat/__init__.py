"""The import name `liger_kernel` on top of the Liger packages. This version has no such name
yet.
"""

__version__ = "0.1.0"
__all__: list[str] = []
