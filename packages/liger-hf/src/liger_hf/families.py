"""apply_liger_kernel_to_<model type>: models of one family come patched from their constructor.

For code that makes its models itself. There is a function for every causal-LM and
image-text-to-text type of transformers, from one rule: the classes of the family are those of its
modeling file that take its configuration. Their `__init__` gets a wrapper, which patches the
instance when the outermost of them is done; nothing else of a class changes, and taking the wrapper
off leaves every class as it was.
"""

import functools
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

from .auto import flags_in
from .patch import NothingToReplace, apply

__all__ = ["Family", "function"]

APPLY, REVERT = "apply_liger_kernel_to_", "revert_liger_kernel_to_"
_families: dict[str, "Family"] = {}
_lock = threading.RLock()


class _Construction(threading.local):
    depth = 0

    @contextmanager
    def outermost(self) -> Iterator[bool]:
        self.depth += 1
        try:
            yield self.depth == 1
        finally:
            self.depth -= 1


_construction = _Construction()


class Family:
    """What `apply_liger_kernel_to_<model type>` returns: `revert` it, or use it in a `with` block.

    Attributes:
        model_type: of the configuration.
        flags: for `apply`.
        active: whether instances are patched.
    """

    def __init__(self, model_type: str, flags: dict[str, bool]):
        self.model_type = model_type
        self.flags = flags
        self.active = False
        self._wrapped: list[tuple[type, Callable[..., None], Callable[..., None] | None]] = []

    def revert(self) -> None:
        """Models made from now on are not patched. Those that are patched stay so."""
        with _lock:
            self.active = False
            for kind, wrapper, original in self._wrapped:
                # somebody else's wrapper around ours stays, and ours passes on
                if vars(kind).get("__init__") is not wrapper:
                    continue
                if original is None:
                    del kind.__init__  # type: ignore[misc]
                else:
                    kind.__init__ = original  # type: ignore[misc]
            self._wrapped.clear()

    def __enter__(self) -> "Family":
        return self

    def __exit__(self, *_: object) -> None:
        self.revert()

    def install(self) -> None:
        """Wrap the constructors; called once."""
        self.active = True
        for kind in _classes(self.model_type):
            original = vars(kind).get("__init__")
            wrapper = self._wrapper(kind, original)
            kind.__init__ = wrapper  # type: ignore[misc]
            self._wrapped.append((kind, wrapper, original))

    def _wrapper(self, kind: Any, original: Callable[..., None] | None) -> Callable[..., None]:
        @functools.wraps(kind.__init__)
        def __init__(model: Any, *args: Any, **kwargs: Any) -> None:
            with _construction.outermost() as outermost:
                if original is None:
                    super(kind, model).__init__(*args, **kwargs)
                else:
                    original(model, *args, **kwargs)
            if outermost and self.active:
                with suppress(NothingToReplace):
                    apply(model, **self.flags)

        return __init__


def _types() -> dict[str, list[str]]:
    """model type -> classes with a language-model head."""
    from transformers.models.auto import modeling_auto

    types: dict[str, list[str]] = {}
    for mapping in (
        modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
        modeling_auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
    ):
        for model_type, names in mapping.items():
            types.setdefault(model_type, []).extend([names] if isinstance(names, str) else names)
    return types


def _classes(model_type: str) -> list[type]:
    import transformers

    listed = [getattr(transformers, name) for name in _types()[model_type]]
    found: dict[type, None] = dict.fromkeys(listed)
    for module in {sys.modules[kind.__module__] for kind in listed}:
        for kind in vars(module).values():
            if (
                isinstance(kind, type)
                and issubclass(kind, transformers.PreTrainedModel)
                and kind.__module__ == module.__name__
                and getattr(kind.config_class, "model_type", None) == model_type
            ):
                found[kind] = None
    return list(found)


def function(name: str) -> Callable[..., Any]:
    """The function of this name; AttributeError where transformers has no such model type."""
    prefix = APPLY if name.startswith(APPLY) else REVERT
    for model_type in _types():
        if prefix + "".join(c if c.isalnum() else "_" for c in model_type) == name:
            made = _applying(name, model_type) if prefix == APPLY else _reverting(model_type)
            made.__name__ = made.__qualname__ = name
            return made
    raise AttributeError(
        f"{name}: transformers has no such type of text or image-text-to-text model; "
        "liger_hf.apply patches any instance"
    )


def _applying(name: str, model_type: str) -> Callable[..., Family]:
    def function(**flags: bool) -> Family:
        unknown = dict(flags)
        flags_in(unknown)
        if unknown:
            raise TypeError(f"{name}: {', '.join(unknown)} is no flag of liger_hf.apply")
        with _lock:
            if model_type in _families:
                _families[model_type].revert()
            family = _families[model_type] = Family(model_type, flags)
            family.install()
        return family

    function.__doc__ = f"""Patch every {model_type} model that is made from now on.

    Flags are those of `apply`; a second call replaces the first. Returns a `Family`, to `revert` or
    to use in a `with` block. Raises TypeError for an unknown flag.
    """
    return function


def _reverting(model_type: str) -> Callable[[], None]:
    def function() -> None:
        with _lock:
            if model_type in _families:
                _families.pop(model_type).revert()

    function.__doc__ = f"""Take back `{APPLY}` of {model_type}: its classes are what they were."""
    return function
