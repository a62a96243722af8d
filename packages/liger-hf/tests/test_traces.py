"""torch.compile takes a patched model whole, with the kernels of a GPU and all sizes symbols."""

import liger_hf
import pytest
import zoo
from families import tokens
from liger_core.lang import HAS_TRITON
from liger_core.testing.interpreter import interpreting
from liger_core.testing.tracing import traced_kernels

TYPES = [
    ("causal-lm", "llama"),
    ("causal-lm", "gemma2"),
    ("causal-lm", "qwen3_moe"),
    ("causal-lm", "gpt_oss"),
    ("image-text-to-text", "qwen2_vl"),
]


@pytest.mark.skipif(not HAS_TRITON or interpreting(), reason="Triton's kernels are traced")
@pytest.mark.parametrize("key", TYPES, ids="-".join)
def test_step_is_one_graph(key):
    model = zoo.tiny(*key).train()
    # no images here
    patched = [row for row in liger_hf.apply(model).patched if "visual" not in row.path]
    found = traced_kernels(model, dynamic=True, input_ids=tokens(), labels=tokens())
    assert found.count("liger_losses.head_loss.default") == 1
    # one at least for each part, in the forward alone
    assert len(found) >= len(patched)
