"""What a patch changes for the process is put back after each test."""

import liger_hf
import pytest
from transformers.loss import loss_utils
from transformers.models.gemma import modeling_gemma
from transformers.models.llama import modeling_llama
from transformers.models.mixtral import modeling_mixtral
from transformers.models.qwen2 import modeling_qwen2
from transformers.models.stablelm import modeling_stablelm

GLOBALS = [
    (loss_utils, "fixed_cross_entropy"),
    *((module, "apply_rotary_pos_emb")
      for module in (modeling_gemma, modeling_llama, modeling_mixtral, modeling_qwen2,
                     modeling_stablelm)),
]  # fmt: skip


@pytest.fixture(autouse=True)
def put_back(monkeypatch):
    for owner, name in GLOBALS:
        monkeypatch.setattr(owner, name, getattr(owner, name))
    yield
    for name in ("gemma", "llama", "qwen2"):
        getattr(liger_hf, f"revert_liger_kernel_to_{name}")()
