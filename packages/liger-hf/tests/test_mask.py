"""Masks of models that count their own positions: what is not looked at, and what still is."""

import copy

import liger_hf
import pytest
import torch
from families import FAMILIES, build, tokens
from transformers import LlamaModel, masking_utils
from transformers.masking_utils import create_causal_mask

PACKED = torch.tensor([[0, 1, 2, 0, 1, 2, 3, 4, 5], [0, 1, 2, 3, 4, 5, 6, 0, 1]])
PADDED = torch.tensor([[0, 0, 1, 1, 1, 1, 1, 1, 1], [1] * 9])
ONLY_MASK = dict.fromkeys(("norms", "mlp", "moe", "rope", "loss"), False)


@pytest.fixture
def looks(monkeypatch):
    """The positions that were looked at."""
    found, look = [], masking_utils.find_packed_sequence_indices
    monkeypatch.setattr(
        masking_utils, "find_packed_sequence_indices", lambda p: found.append(p) or look(p)
    )
    return found


@pytest.mark.parametrize("family", FAMILIES)
def test_own_positions_are_not_looked_at(family, looks):
    model, batch = build(family, use_cache=False), tokens()
    expected = model(input_ids=batch).logits
    assert looks
    looks.clear()
    (row,) = liger_hf.apply(model, **ONLY_MASK).rows
    assert (row.part, row.path) == ("mask", "model")
    assert torch.equal(model(input_ids=batch).logits, expected)
    assert torch.equal(copy.deepcopy(model)(batch).logits, expected)
    assert not looks


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
@pytest.mark.parametrize("given", [{"position_ids": PACKED}, {"attention_mask": PADDED}])
def test_what_a_caller_gives_counts(given, implementation):
    model = build("llama", attn_implementation=implementation, use_cache=False)
    plain = model(input_ids=tokens()).logits
    expected = model(input_ids=tokens(), **given).logits
    assert not torch.allclose(plain, expected)
    liger_hf.apply(model, **ONLY_MASK)
    assert torch.equal(model(input_ids=tokens(), **given).logits, expected)
    in_order = [given.get(name) for name in ("attention_mask", "position_ids")]
    assert torch.equal(model(tokens(), *in_order).logits, expected)
    assert torch.equal(model.model(tokens(), *in_order)[0], model.model(tokens(), **given)[0])


def test_evaluation_is_as_before(looks):
    model = build("llama", use_cache=False).eval()
    liger_hf.apply(model, **ONLY_MASK)
    model(input_ids=tokens())
    assert looks


class PastPadding(LlamaModel):
    """Counts the tokens that are no padding."""

    def forward(self, input_ids=None, position_ids=None, **kwargs):
        embedded = self.embed_tokens(input_ids)
        if position_ids is None:
            position_ids = (input_ids != 0).cumsum(-1) - 1
        mask = create_causal_mask(
            config=self.config, inputs_embeds=embedded, attention_mask=None, past_key_values=None,
            position_ids=position_ids,
        )  # fmt: skip
        return self.layers[0](embedded, attention_mask=mask)


def test_other_positions_are_looked_at():
    model = PastPadding(build("llama").config)
    with pytest.raises(ValueError, match="nothing to replace"):
        liger_hf.apply(model, **ONLY_MASK)


def test_body_that_gets_itself_once_more():
    """As accelerate's unwrap_model leaves it."""
    body = build("llama", use_cache=False).model
    expected = body(tokens())[0]
    liger_hf.apply(body, **ONLY_MASK)
    assert torch.equal(body.forward(body, tokens())[0], expected)
    assert torch.equal(body.eval().forward(body, tokens())[0], body(tokens())[0])


def test_flag():
    model = build("llama")
    liger_hf.apply(model, mask=False)
    assert "forward" not in vars(model.model)


@pytest.mark.parametrize("patched", [True, False])
def test_mask_of_a_compiled_model(patched):
    """SDPA takes its causal kernel where there is none."""
    model, masks = build("llama", use_cache=False), []
    if patched:
        liger_hf.apply(model, **ONLY_MASK)
    model.model.layers[0].register_forward_pre_hook(
        lambda layer, args, given: masks.append(given["attention_mask"]), with_kwargs=True
    )
    torch.compile(model, backend="eager")(input_ids=tokens()).logits.sum().backward()
    assert [mask is None for mask in masks] == [patched]
