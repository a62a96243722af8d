"""The losses as functions, with positional arguments."""

from .cosine_similarity_loss import liger_fused_linear_cosine as liger_fused_linear_cosine
from .cpo_loss import liger_fused_linear_cpo as liger_fused_linear_cpo
from .dpo_loss import liger_fused_linear_dpo as liger_fused_linear_dpo
from .grpo_loss import liger_fused_linear_grpo as liger_fused_linear_grpo
from .jsd_loss import liger_fused_linear_jsd as liger_fused_linear_jsd
from .kto_loss import liger_fused_linear_kto as liger_fused_linear_kto
from .orpo_loss import liger_fused_linear_orpo as liger_fused_linear_orpo
from .simpo_loss import liger_fused_linear_simpo as liger_fused_linear_simpo
