"""Trainers of TRL (1.16 and later) on our head: SFT, DPO, KTO, GRPO, RLOO.

These trainers put a forward of their own on the model, `add_fused_lm_head` of `trl.trainer.utils`.
Called with `fused_lm_head=True` and labels, it answers with log-probabilities and statistics of
each token instead of logits. `apply` puts ours on top, with the same keywords and outputs:

    trainer = DPOTrainer(model, ...)
    liger_hf.trl.apply(trainer)
    trainer.train()

The statistics are those of `liger_losses.linear_log_probs`. Scale and soft-capping are what the
model's own forward does to its logits, read off deferred logits rather than a configuration; a head
that cannot be left out (an adapter on it) makes real logits, and its adapter counts.
"""

import inspect
from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from .deferred import DeferredLogits
from .find_head import language_models
from .forms import load
from .head import HeadPatch, ModelPatch, linear_op, targets
from .logit_ops import fold
from .patch import NothingToReplace, apply as apply_to_model, report
from .replaced import patches
from .reporting import Report, Row
from .window import plain_heads

__all__ = ["apply"]

SETTINGS = ("temperature", "cast_lm_head_to_fp32", "outputs")
# fields of TRL's output, and the statistic of linear_log_probs that each is computed from
STATISTICS = {
    "entropy": "entropy",
    "log_sum_sq_probs": "squares",
    "mean_logits": "mean_logits",
    "is_top1": "argmax",
}


def apply(trainer: Any, **flags: bool) -> Report:
    """Patch the model of a TRL trainer, and its reference model, and serve the trainer's calls.

    Args:
        trainer: of TRL, constructed and not yet run.
        flags: those of `liger_hf.apply`; `loss` is on.

    Returns:
        The report of `liger_hf.apply` for both models. `liger_hf.revert` of each undoes it.

    Raises:
        TypeError: `trainer` has no model; an unknown flag.
        ValueError: the trainer has put no fused head on its model, as before TRL 1.16 and in
            trainers that use logits; `loss=False`; liger-losses is not installed.
    """
    held = (getattr(trainer, name, None) for name in ("model", "ref_model"))
    models = [model for model in held if isinstance(model, nn.Module)]
    if not models:
        raise TypeError(f"liger_hf: {type(trainer).__name__} has no model to patch")
    if not flags.setdefault("loss", True):
        raise ValueError("liger_hf: loss=False leaves out the head, which is what a trainer calls")
    if load("liger_losses", "linear_log_probs") is None:
        raise ValueError("liger_hf: pip install liger-losses")
    rows: list[Row] = []
    for model in models:
        served = [(path, *found) for path, *found in _served(model)]
        if not served:
            raise ValueError(
                f"liger_hf: {type(trainer).__name__} has put no fused head on "
                f"{type(model).__name__}, as trainers of TRL 1.16 do"
            )
        rows += _patch(model, flags)
        for path, owner, head, settings, output in served:
            patch = _on_top(path, owner, head, settings["cast_lm_head_to_fp32"])
            patch.contract = Contract(settings, output)
    return Report(rows)


def _served(model: nn.Module) -> Iterator[tuple[str, Any, Any, dict[str, Any], type]]:
    """(path of the head, model, head, TRL's settings, TRL's class of outputs)."""
    for path, owners, head in language_models(model):
        for owner in owners:
            function = _forward_of_trl(owner)
            if function is not None:
                yield path, owner, head, *_settings(function)


def _forward_of_trl(model: Any) -> Any:
    """The function that takes `fused_lm_head`, under what others have put on the model since."""
    forward = model.forward
    while forward is not None:
        function = getattr(forward, "__func__", forward)
        code = getattr(function, "__code__", None)
        if "fused_lm_head" in getattr(code, "co_varnames", ()):
            return function
        forward = getattr(forward, "__wrapped__", None)
    return None


def _settings(function: Any) -> tuple[dict[str, Any], type]:
    """What `add_fused_lm_head` was called with, which only its closure knows."""
    variables = inspect.getclosurevars(function)
    try:
        output = variables.globals["FusedCausalLMOutput"]
        return {name: variables.nonlocals[name] for name in SETTINGS}, output
    except KeyError as missing:
        raise ValueError(
            f"liger_hf: the trainer's fused head, {function.__module__}.{function.__qualname__}, "
            f"has no {missing}, unlike that of TRL 1.16"
        ) from None


def _patch(model: nn.Module, flags: dict[str, bool]) -> list[Row]:
    """Patches that the trainer's forward has covered are put on again, above it."""
    for _, owners, head in language_models(model):
        covered = [owner for owner in owners if patches(owner)]
        if any(not isinstance(vars(owner)["forward"], ModelPatch) for owner in covered):
            for module in (*owners, *plain_heads(head)):
                for patch in patches(module):
                    patch.remove()
    try:
        return apply_to_model(model, **flags).rows
    except NothingToReplace:
        return report(model, **flags).rows


def _on_top(path: str, owner: Any, head: Any, cast: bool) -> ModelPatch:
    """The patch of the model's forward, also where the head is left as it is."""
    patch = vars(owner)["forward"]
    if isinstance(patch, ModelPatch):
        return patch
    row = Row(path, type(head).__name__, "head of a TRL trainer", "liger_losses.log_probs")
    if cast:
        # its forward is TRL's, which is the linear map in fp32; the contract does that itself
        HeadPatch(head, row).install()
    patch = ModelPatch(owner, row)
    patch.install()
    return patch


class Contract:
    """What a model with TRL's fused head answers when called with `fused_lm_head=True`."""

    def __init__(self, settings: dict[str, Any], output: type):
        self.temperature: float = settings["temperature"]
        self.cast: bool = settings["cast_lm_head_to_fp32"]
        self.fields = [name for name in STATISTICS if name in settings["outputs"]]
        self.output = output

    def __call__(
        self, patch: ModelPatch, *args: Any, labels: Tensor | None = None,
        shift_labels: Tensor | None = None, num_items_in_batch: Tensor | float | None = None,
        **kwargs: Any,
    ) -> Any:  # fmt: skip
        outputs = patch.without_logits(*args, **kwargs | {"use_cache": False})
        target = targets(labels, shift_labels, -100).to(outputs.logits.device)
        # without shift_labels the last token has no label and is left out of what is returned
        length = outputs.logits.shape[1] - (shift_labels is None)
        shape = (-1, outputs.logits.shape[1])
        found = self._statistics(outputs.logits, target)._asdict()
        mask = target != -100
        fields = {"log_probs": found["log_probs"], "label_mask": mask}
        for name in self.fields:
            value = found[STATISTICS[name]]
            if name == "is_top1":
                value = (value == target) & mask
            elif name == "log_sum_sq_probs":
                value = value.log().where(mask, 0.0)
            fields[name] = value if name == "entropy" else value.detach()
        fields = {name: value.view(shape)[:, :length] for name, value in fields.items()}
        total = mask.sum().clamp(min=1) if num_items_in_batch is None else num_items_in_batch
        loss = -fields["log_probs"].sum() / total
        aux_loss = getattr(outputs, "aux_loss", None)
        if aux_loss is not None:
            config: Any = patch.module.config
            coefficient = getattr(config.get_text_config(), "router_aux_loss_coef", 0.0)
            loss = loss + coefficient * aux_loss.to(loss.device)
        return self.output(loss=loss, aux_loss=aux_loss, **fields)

    def _statistics(self, logits: Any, target: Tensor) -> Any:
        """`liger_losses.LogProbs` of all tokens in one row, at the temperature."""
        import liger_losses

        names = [STATISTICS[name] for name in self.fields]
        options = None
        if isinstance(logits, DeferredLogits) and logits.tensor is None:
            options = fold((*logits.ops, ("div", self.temperature)))
        if options is None:
            real = logits.materialize() if isinstance(logits, DeferredLogits) else logits
            rows = real.reshape(-1, real.shape[-1])
            scale = 1.0 / self.temperature
            return liger_losses.log_probs(rows, target, statistics=names, logit_scale=scale)
        compute = partial(
            _in_fp32 if self.cast else linear_op, op=liger_losses.linear_log_probs, target=target,
            statistics=names, **options,
        )  # fmt: skip
        return logits.head(logits.hidden, compute)


def _in_fp32(input: Tensor, weight: Tensor, bias: Tensor | None, **options: Any) -> Any:
    with torch.autocast(input.device.type, enabled=False):
        bias = None if bias is None else bias.float()
        return linear_op(input.float(), weight.float(), bias, **options)
