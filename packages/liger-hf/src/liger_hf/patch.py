"""Patch a model in place, layer by layer, and take the patches back. `replaced` has one patch."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

from .replaced import Patch, patches
from .reporting import Report

__all__ = ["NothingToReplace", "applied", "apply", "explain", "report", "revert"]

_lock = threading.RLock()


class NothingToReplace(ValueError):
    """`apply` found no layer that it could replace."""


def apply(
    model: nn.Module,
    *,
    norms: bool = True,
    mlp: bool = True,
    moe: bool = True,
    rope: bool = True,
    mask: bool = True,
    loss: bool = True,
) -> Report:
    """Replace norms, MLPs, experts, rotary embeddings, and head with loss by Liger kernels.

    Layers are recognised by what they compute: each replacement is run beside the original on a
    small input, and a layer with which no replacement agrees is left alone. Only this instance
    changes; `revert` undoes it.

    Args:
        model: a `transformers.PreTrainedModel`, or a module that holds one (PEFT, DDP, FSDP2 and
            compiled models do; FSDP1 is to wrap a model that is patched already).
        norms: RMS and layer norms, with a gate or without, on `liger_norms`.
        mlp: gated and squared-ReLU MLPs, on `liger_activations`.
        moe: the gate of experts that go by transformers' experts interface, likewise; the products
            beside it stay those of torch.
        rope: rotary embeddings in attention layers, on `liger_rope`.
        mask: in training without an attention mask and positions, no look for packed sequences in
            the positions that the model makes itself: a wait for the device at the start of every
            step and, compiled, an explicit mask.
        loss: in training with labels, the loss is computed from hidden states on `liger_losses`,
            and `outputs.logits` turns into real logits when something reads it. In evaluation and
            without labels logits are real. A batch without a single label to learn gives 0, where
            transformers gives NaN.

    Returns:
        What was replaced and what was not, with the reasons; `print` it. A second call changes
        nothing.

    Raises:
        TypeError: `model` is not a module.
        ValueError: nothing could be replaced; the message holds the report.
    """
    with _lock:
        flags = {"norms": norms, "mlp": mlp, "moe": moe, "rope": rope, "mask": mask, "loss": loss}
        return _apply(model, flags)[0]


def report(
    model: nn.Module,
    *,
    norms: bool = True,
    mlp: bool = True,
    moe: bool = True,
    rope: bool = True,
    mask: bool = True,
    loss: bool = True,
) -> Report:
    """What `apply` with these arguments would do, without doing it.

    Raises TypeError where `model` is not a module.
    """
    with _lock:
        return _plan(
            model,
            {"norms": norms, "mlp": mlp, "moe": moe, "rope": rope, "mask": mask, "loss": loss},
        )[0]


def explain(model: nn.Module) -> None:
    """Print which canonical form every layer has, and how far it lies from it: the largest relative
    difference between the layer and the form on the probe's inputs. Of a layer without a form, the
    three next ones. Nothing is changed.

    Raises TypeError where `model` is not a module.
    """
    print(report(model).explain())


def revert(model: nn.Module) -> None:
    """Undo `apply` on `model` and all inside it: every attribute is what it was, by identity.

    A model that is not patched is left as it is. Raises TypeError where `model` is not a module.
    """
    _check(model)
    with _lock:
        _remove([patch for module in model.modules() for patch in patches(module)])


@contextmanager
def applied(
    model: nn.Module,
    *,
    norms: bool = True,
    mlp: bool = True,
    moe: bool = True,
    rope: bool = True,
    mask: bool = True,
    loss: bool = True,
) -> Iterator[Report]:
    """`apply` for the length of a `with` block. Patches that were there before it stay."""
    flags = {"norms": norms, "mlp": mlp, "moe": moe, "rope": rope, "mask": mask, "loss": loss}
    with _lock:
        result, installed = _apply(model, flags)
    try:
        yield result
    finally:
        with _lock:
            _remove(installed)


def _check(model: nn.Module) -> None:
    if not isinstance(model, nn.Module):
        raise TypeError(f"liger_hf: model must be a torch.nn.Module, got {type(model).__name__}")


def _plan(model: nn.Module, flags: dict[str, bool]) -> tuple[Report, list[Patch]]:
    from .find import find

    _check(model)
    rows, planned = [], []
    for row, found in find(model, flags):
        rows.append(row)
        planned += found
    return Report(rows), planned


def _apply(model: nn.Module, flags: dict[str, bool]) -> tuple[Report, list[Patch]]:
    result, planned = _plan(model, flags)
    # a mask is no kernel: alone, it would look like a patched model to who asked for more
    found = {row.part for row in result.patched}
    if not found or (found == {"mask"} and any(on for flag, on in flags.items() if flag != "mask")):
        raise NothingToReplace(f"liger_hf: nothing to replace in {type(model).__name__}\n{result}")
    installed: list[Patch] = []
    try:
        for patch in planned:
            installed.append(patch)
            patch.install()
    except BaseException:
        _remove(installed)
        raise
    return result, installed


def _remove(installed: list[Patch]) -> None:
    for patch in reversed(installed):
        patch.remove()
