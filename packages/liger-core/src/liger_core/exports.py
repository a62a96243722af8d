"""Lazy package exports: importing a package loads none of its ops, and no Triton, until a name is
used.
"""

import importlib
import sys
import types

__all__ = ["lazy_exports"]


def lazy_exports(package: str, exports: dict[str, tuple[str, ...]]) -> list[str]:
    """Make `package.<name>` import its submodule on first use (PEP 562) and return the list for
    `__all__`.

    Args:
        package: the package's `__name__`.
        exports: submodule -> public names that it defines.

    An op lives in a submodule of its own name (`liger_norms/rms_norm.py` defines `rms_norm`).
    Importing such a submodule makes Python bind the module to that attribute of the package; the
    class below binds the public name instead.
    """
    home = {name: module for module, names in exports.items() for name in names}

    class LazyPackage(types.ModuleType):
        def __getattr__(self, name: str) -> object:
            if name not in home:
                raise AttributeError(f"module {package!r} has no attribute {name!r}")
            value = getattr(importlib.import_module(f"{package}.{home[name]}"), name)
            setattr(self, name, value)
            return value

        def __setattr__(self, name: str, value: object) -> None:
            if name in home and isinstance(value, types.ModuleType):
                value = getattr(value, name, value)
            super().__setattr__(name, value)

        def __dir__(self) -> list[str]:
            return sorted({*super().__dir__(), *home})

    sys.modules[package].__class__ = LazyPackage
    return sorted(home)
