"""RMSNorm of a sum."""

from torch import Tensor, nn

from .functional import liger_fused_add_rms_norm
from .parameters import learned

__all__ = ["LigerFusedAddRMSNorm"]


class LigerFusedAddRMSNorm(nn.Module):
    """`liger_fused_add_rms_norm` with a weight; arguments as of `LigerRMSNorm`."""

    def __init__(
        self, hidden_size: int, eps: float = 1e-6, offset: float = 0.0, casting_mode: str = "llama",
        init_fn: str = "ones", in_place: bool = False,
    ):  # fmt: skip
        super().__init__()
        self.weight = learned(hidden_size, init_fn)
        self.variance_epsilon, self.offset, self.casting_mode = eps, offset, casting_mode
        self.in_place = in_place

    def forward(self, hidden_states: Tensor, residual: Tensor) -> tuple[Tensor, Tensor]:
        return liger_fused_add_rms_norm(
            hidden_states, residual, self.weight, self.variance_epsilon, self.offset,
            self.casting_mode,
        )  # fmt: skip

    def extra_repr(self) -> str:
        return f"{tuple(self.weight.shape)}, eps={self.variance_epsilon}, offset={self.offset}"
