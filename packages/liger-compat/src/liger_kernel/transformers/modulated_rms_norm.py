"""RMSNorm with a scale and a shift for each sample."""

from torch import Tensor, nn

from .functional import liger_modulated_rms_norm
from .parameters import learned

__all__ = ["LigerModulatedRMSNorm"]


class LigerModulatedRMSNorm(nn.Module):
    """`liger_modulated_rms_norm` with a weight; arguments as of `LigerRMSNorm`."""

    def __init__(
        self, hidden_size: int, eps: float = 1e-6, offset: float = 0.0, casting_mode: str = "llama",
        init_fn: str = "ones", in_place: bool = True, elementwise_affine: bool = True,
    ):  # fmt: skip
        super().__init__()
        self.elementwise_affine = elementwise_affine
        self.weight = learned(hidden_size, init_fn) if elementwise_affine else None
        self.variance_epsilon, self.offset, self.casting_mode = eps, offset, casting_mode
        self.in_place = in_place

    def forward(self, hidden_states: Tensor, scale: Tensor, shift: Tensor | None = None) -> Tensor:
        return liger_modulated_rms_norm(
            hidden_states, self.weight, scale, shift, self.variance_epsilon, self.offset,
            self.casting_mode,
        )  # fmt: skip

    def extra_repr(self) -> str:
        shape = None if self.weight is None else tuple(self.weight.shape)
        return f"weight_shape={shape}, eps={self.variance_epsilon}, offset={self.offset}"
