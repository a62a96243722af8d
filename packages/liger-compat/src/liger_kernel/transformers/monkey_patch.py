"""Patch transformers models by the functions that tools call, on `liger_hf`.

A function called with `model=` patches that instance; without, the models of its types that are
made from then on. What is replaced is found and verified by `liger_hf`, whatever the model's type.

Two things are done beyond that, because tools look for them. A patched instance shows
`LigerRMSNorm` and its like as names of its layers. And the rotary function of its modeling file,
where `liger_hf` found it to be the half rotation, becomes `liger_rotary_pos_emb` for the process.
"""

import inspect
import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import liger_hf
from liger_hf.patch import NothingToReplace
from liger_hf.replaced import Patch
from liger_hf.reporting import Row
from torch import nn

from .loss import use_liger_cross_entropy
from .rope import liger_rotary_pos_emb
from .signatures import LLAMA, MODEL_TYPES, SIGNATURES, signature

__all__ = ["MODEL_TYPE_TO_APPLY_LIGER_FN"]

if TYPE_CHECKING:
    # most of the names are generated
    def __getattr__(name: str) -> Any: ...


logger = logging.getLogger(__name__)

# flag of `liger_hf.apply` -> the flags that ask for it, of which a function has one or none
FLAGS = {
    "norms": ("rms_norm",),
    "mlp": ("swiglu", "geglu", "relu_squared"),
    "moe": ("swiglu", "geglu"),
    "rope": ("rope",),
    "mask": ("rope",),
    "loss": ("fused_linear_cross_entropy",),
}
# what is installed -> the name that a layer shows
NAMES = {"liger_norms.rms_norm": "LigerRMSNorm", "liger_norms.layer_norm": "LigerLayerNorm"}
ANY_TYPE = signature(LLAMA)
# first parameters of a rotary function that ours can stand in for
TABLES = ["q", "k", "cos", "sin"]


def _patch(name: str, given: dict[str, Any]) -> None:
    """`given` are the flags of a function, and the model."""
    model: nn.Module | None = given.pop("model", None)
    fused, plain = given.get("fused_linear_cross_entropy"), given.get("cross_entropy")
    assert not (fused and plain), "cross_entropy and fused_linear_cross_entropy cannot both be True"
    if plain:
        use_liger_cross_entropy()
    flags = {
        flag: bool(next((given[asks] for asks in names if asks in given), True))
        for flag, names in FLAGS.items()
    }
    if model is not None:
        _patch_instance(model, flags)
        return
    types = [kind for kind, function in MODEL_TYPES.items() if function == name] or [name]
    for kind in types:
        try:
            patch = getattr(liger_hf, f"apply_liger_kernel_to_{kind}")
        except AttributeError:
            logger.info("models of type %s are patched with those that contain them", kind)
            continue
        patch(**flags)


def _patch_instance(model: nn.Module, flags: dict[str, bool]) -> None:
    try:
        report = liger_hf.apply(model, **flags)
    except NothingToReplace as error:
        logger.warning("%s", error)
        return
    logger.info("%s", report)
    for row in report.patched:
        module = model.get_submodule(row.path)
        if row.op == "liger_rope.rope" and row.form == "rope half":
            _replace_rotary(module)
        elif row.op in ("liger_activations.glu", "liger_activations.glu_linear"):
            _Name(
                module, row, "LigerGEGLUMLP" if "gelu" in row.form else "LigerSwiGLUMLP"
            ).install()
        elif row.op in NAMES:
            _Name(module, row, NAMES[row.op]).install()


class _Name(Patch):
    """The name that a layer shows."""

    __slots__ = ("shown",)

    def __init__(self, module: nn.Module, row: Row, shown: str):
        super().__init__(module, row, "_get_name")
        self.shown = shown

    def __call__(self) -> str:
        return self.shown if self.active else self.inner()


def _replace_rotary(attention: nn.Module) -> None:
    """In the modeling file of an attention layer, whose rotary function was verified."""
    forward, name = inspect.unwrap(type(attention).forward), "apply_rotary_pos_emb"
    if name in forward.__code__.co_names:
        known = inspect.signature(forward.__globals__[name]).parameters
        if list(known)[:4] == TABLES:
            forward.__globals__[name] = liger_rotary_pos_emb


def _make(name: str) -> Callable[..., None]:
    known = signature(SIGNATURES[name])

    def function(*args: Any, **kwargs: Any) -> None:
        bound = known.bind(*args, **kwargs)
        bound.apply_defaults()
        given = dict(bound.arguments)
        _patch(name, {**given, **given.pop("kwargs", {})})

    function.__name__ = function.__qualname__ = f"apply_liger_kernel_to_{name}"
    function.__doc__ = f"""Patch {name} models: `model`, or those that are made from now on.

    Flags are {", ".join(known.parameters)}. AssertionError for both cross entropies at once.
    """
    function.__signature__ = known  # type: ignore[attr-defined]
    return function


_FUNCTIONS = {name: _make(name) for name in SIGNATURES}
MODEL_TYPE_TO_APPLY_LIGER_FN = {kind: _FUNCTIONS[name] for kind, name in MODEL_TYPES.items()}
# those of parts, such as qwen3_5_text, too: some tools expect one by the name of each type
globals().update(
    {f"apply_liger_kernel_to_{kind}": f for kind, f in MODEL_TYPE_TO_APPLY_LIGER_FN.items()}
)


def _known(model_type: str, kwargs: dict[str, Any]) -> dict[str, Any]:
    """The flags that the function of a type has; callers pass one set of them for all types."""
    function = MODEL_TYPE_TO_APPLY_LIGER_FN.get(model_type)
    names = (ANY_TYPE if function is None else inspect.signature(function)).parameters
    unknown = sorted(kwargs.keys() - names.keys())
    if unknown:
        logger.warning("%s models have no %s to patch", model_type, ", ".join(unknown))
    return {name: value for name, value in kwargs.items() if name in names}


def _apply_liger_kernel(model_type: str, **kwargs: Any) -> None:
    """Patch the models of a type that are made from now on."""
    if not model_type:
        logger.info("no model type was given: nothing is patched")
        return
    _apply(model_type, _known(model_type, kwargs))


def _apply_liger_kernel_to_instance(model: Any, **kwargs: Any) -> None:
    """Patch a model."""
    model_type = getattr(getattr(model, "config", None), "model_type", None)
    if not model_type:
        logger.info("the model has no type in its configuration: nothing is patched")
        return
    _apply(model_type, {**_known(model_type, kwargs), "model": model})


def _apply(model_type: str, given: dict[str, Any]) -> None:
    function = MODEL_TYPE_TO_APPLY_LIGER_FN.get(model_type)
    if function is not None:
        function(**given)
        return
    bound = ANY_TYPE.bind(**given)
    bound.apply_defaults()
    _patch(model_type, dict(bound.arguments))
