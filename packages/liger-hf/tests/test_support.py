"""The table of supported types is what the installed transformers gives, and it is true: what it
calls patched in full trains as before.

Without LIGER_SUPPORT=all, which `nox -s support` sets, a sample is tested.
"""

import os

import liger_hf
import pytest
import support
import torch
import transformers
import zoo
from families import assert_same_objects, snapshot

STORED = support.json.loads(support.STORED.read_text())
FOUND = {(kind, name): f for kind, types in STORED["kinds"].items() for name, f in types.items()}
FULL = [
    key
    for key, found in FOUND.items()
    if "error" not in found and support.full(found) and any(found[part]["forms"] for part in found)
]
# no loss of tokens alone: they need images, states, codes, or the embeddings of another model
NEEDS_MORE = {
    "blip", "blip-2", "diffusion_gemma", "gemma4_unified_assistant", "git", "idefics",
    "instructblip", "instructblipvideo", "kosmos-2", "molmo2", "musicgen", "musicgen_melody", "pi0",
    "pix2struct", "pp_formulanet", "udop", "vision-encoder-decoder", "xlstm",
}  # fmt: skip
# hashes at random, by a seed of its own
RANDOM = {"reformer"}
STEPS = 5


def sample(keys: list[tuple[str, str]], every: int) -> list[tuple[str, str]]:
    if os.environ.get("LIGER_SUPPORT") == "all":
        return keys
    return keys[::every]


def ids(key):
    return "-".join(key) if isinstance(key, tuple) else None


@pytest.mark.parametrize("key", sample(list(FOUND), every=9), ids=ids)
def test_table_is_current(key):
    """Run `nox -s support` where this fails, and read the difference."""
    found = support.inspect(*key)
    if "error" not in found and "Error: " in FOUND[key].get("error", ""):
        pytest.skip("could not be built where the table was made")
    assert found == FOUND[key]


@pytest.mark.parametrize("key", sample(FULL, every=40), ids=ids)
def test_parameters_are_not_read(key):
    """What is found is the same in bf16, and on the meta device, where there are no values."""
    model = zoo.tiny(*key).bfloat16().to("meta")
    assert support.summary(model) == FOUND[key]


def test_pages_are_generated():
    readme = (support.ROOT / "README.md").read_text()
    assert support.readme_line(STORED) in readme
    assert (support.ROOT / "docs/support.md").read_text() == support.page(STORED)


def test_no_type_is_missing():
    if transformers.__version__ != STORED["transformers"]:
        pytest.skip(f"the table is of transformers {STORED['transformers']}")
    assert list(FOUND) == list(zoo.types())


def train(model, steps):
    """Losses, and the gradients of the first step."""
    torch.manual_seed(0)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02)
    losses, first = [], {}
    for step in range(steps):
        batch = torch.randint(3, zoo.TOKENS, (2, 12), generator=torch.Generator().manual_seed(step))
        batch = batch.to(model.device)
        loss = model(input_ids=batch, labels=batch).loss
        loss.backward()
        if step == 0:
            grads = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
            first = {name: grad.clone() for name, grad in grads.items()}
        losses.append(loss.item())
        optimizer.step()
        optimizer.zero_grad()
    return losses, first


TRAINED = sample([key for key in FULL if key[1] not in NEEDS_MORE | RANDOM], every=12)


def perturbed(key):
    try:
        model = zoo.tiny(*key)
    except Exception:
        if transformers.__version__ == STORED["transformers"]:
            raise
        pytest.skip(f"transformers {transformers.__version__} cannot make it")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.02)
    return model


def assert_close(actual, expected, rtol, of_largest):
    """Losses within rtol, gradients within a share of the largest element of each."""
    assert actual[0] == pytest.approx(expected[0], rel=rtol)
    assert actual[1].keys() == expected[1].keys()
    for name, grad in expected[1].items():
        atol = of_largest * grad.abs().max().item() + 1e-7
        torch.testing.assert_close(actual[1][name], grad, rtol=0.0, atol=atol)


@pytest.mark.parametrize("key", TRAINED, ids=ids)
def test_patched_model_trains_as_before(key):
    model = perturbed(key)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    expected = train(model, STEPS)

    model.load_state_dict(before)
    objects = snapshot(model)
    liger_hf.apply(model)
    liger_hf.revert(model)
    assert_same_objects(model, objects)

    liger_hf.apply(model)
    assert_close(train(model, STEPS), expected, rtol=1e-5, of_largest=1e-4)

    liger_hf.revert(model)
    model.load_state_dict(before)
    assert train(model, 2)[0] == expected[0][:2]


@pytest.mark.gpu
@pytest.mark.parametrize("key", TRAINED, ids=ids)
def test_patched_model_trains_as_before_on_a_gpu(key, monkeypatch):
    """The kernels, on the shapes and strides that models give them."""
    # of convolutions; products have it off
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    model = perturbed(key).cuda()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    expected = train(model, 1)
    model.load_state_dict(before)
    liger_hf.apply(model)
    assert_close(train(model, 1), expected, rtol=1e-5, of_largest=1e-3)
