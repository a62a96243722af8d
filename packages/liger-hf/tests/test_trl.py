"""Trainers of TRL on our head and on TRL's own: same losses, same metrics."""

import string

import liger_hf.trl
import pytest
import torch
import zoo
from families import assert_same_step, build, gradients
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

trl = pytest.importorskip("trl")
datasets = pytest.importorskip("datasets")

WORDS = string.ascii_lowercase
# what depends on the clock
CLOCK = ("runtime", "per_second", "step_time", "train_time", "profiling")


def tokenizer() -> PreTrainedTokenizerFast:
    from tokenizers import Tokenizer, models, pre_tokenizers

    special = ["<pad>", "<s>", "</s>", "<unk>"]
    vocabulary = {word: number for number, word in enumerate([*special, *WORDS])}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="<pad>", bos_token="<s>", eos_token="</s>",
        unk_token="<unk>",
    )  # fmt: skip


def sentence(seed: int, length: int) -> str:
    generator = torch.Generator().manual_seed(seed)
    numbers = torch.randint(len(WORDS), (length,), generator=generator)
    return " ".join(WORDS[number] for number in numbers)


def rows(**columns) -> "datasets.Dataset":
    return datasets.Dataset.from_list(
        [{name: make(i) for name, make in columns.items()} for i in range(8)]
    )


def prompt(i: int) -> str:
    return sentence(i, 3 + i % 3)


def chosen(i: int) -> str:
    return " " + sentence(100 + i, 4 + i % 4)


def rejected(i: int) -> str:
    return " " + sentence(200 + i, 6 - i % 4)


def letters(completions: list[str], **_) -> list[float]:
    return [float(completion.count("a") + len(completion) % 5) for completion in completions]


# trainer -> (its configuration, its dataset, what else it takes)
TRAINERS = {
    "SFT": ({}, {"prompt": prompt, "completion": chosen}, {}),
    "DPO": ({}, {"prompt": prompt, "chosen": chosen, "rejected": rejected}, {}),
    "KTO": ({}, {"prompt": prompt, "completion": chosen, "label": lambda i: i % 2 == 0}, {}),
    "GRPO": (
        {"num_generations": 2, "max_completion_length": 5, "temperature": 0.7, "beta": 0.1},
        {"prompt": prompt},
        {"reward_funcs": letters},
    ),
    "RLOO": (
        {"num_generations": 2, "max_completion_length": 5, "temperature": 0.7},
        {"prompt": prompt},
        {"reward_funcs": letters},
    ),
}


def saved(model: torch.nn.Module, folder) -> torch.nn.Module:
    """The model from a folder, from which a trainer can load its reference."""
    model.save_pretrained(folder / "model")
    return AutoModelForCausalLM.from_pretrained(folder / "model", dtype=model.dtype).train()


def make(kind: str, folder, family: str = "llama", model=None, **options):
    settings, columns, extra = TRAINERS[kind]
    config = getattr(trl, f"{kind}Config")(
        folder, max_steps=2, per_device_train_batch_size=2, logging_steps=1, learning_rate=1e-2,
        report_to="none", use_cpu=True, bf16=False, disable_tqdm=True, save_strategy="no",
        gradient_checkpointing=False, **settings, **options,
    )  # fmt: skip
    return getattr(trl, f"{kind}Trainer")(
        model or saved(build(family), folder), args=config, train_dataset=rows(**columns),
        eval_dataset=rows(**columns) if "eval_strategy" in options else None,
        processing_class=tokenizer(), **extra,
    )  # fmt: skip


def logged(trainer) -> list[dict[str, float]]:
    torch.manual_seed(0)
    trainer.train()
    return [
        {k: v for k, v in row.items() if isinstance(v, float) and not any(c in k for c in CLOCK)}
        for row in trainer.state.log_history
    ]


def same(actual, expected) -> None:
    assert len(actual) == len(expected) >= 2
    for a, b in zip(actual, expected, strict=True):
        assert a.keys() == b.keys()
        assert a == pytest.approx(b, rel=2e-4, abs=2e-5)


@pytest.fixture
def count(monkeypatch):
    """Calls of linear_log_probs, and of TRL's own."""
    import liger_losses
    from trl.trainer import utils

    calls = {"ours": 0, "theirs": 0}
    ours, theirs = liger_losses.linear_log_probs, utils._ChunkedLogProbFunction.apply

    def counting(name, function):
        def counted(*args, **kwargs):
            calls[name] += 1
            return function(*args, **kwargs)

        return counted

    monkeypatch.setattr(liger_losses, "linear_log_probs", counting("ours", ours))
    monkeypatch.setattr(
        utils, "_ChunkedLogProbFunction",
        type("Counted", (), {"apply": staticmethod(counting("theirs", theirs))}),
    )  # fmt: skip
    return calls


@pytest.mark.parametrize("kind", TRAINERS)
def test_same_losses_and_metrics(kind, tmp_path, count):
    expected = logged(make(kind, tmp_path))
    assert count["theirs"]
    assert not count["ours"]
    before = count["theirs"]
    trainer = make(kind, tmp_path)
    report = liger_hf.trl.apply(trainer)
    assert not report.refused
    same(logged(trainer), expected)
    assert count == {"ours": before, "theirs": before}


@pytest.mark.parametrize("family", ["gemma2", "granite", "cohere"])
def test_softcap_and_scale_are_the_models_own(family, tmp_path, count):
    expected = logged(make("DPO", tmp_path, family, loss_type=["sigmoid"], use_weighting=True))
    trainer = make("DPO", tmp_path, family, loss_type=["sigmoid"], use_weighting=True)
    liger_hf.trl.apply(trainer, norms=False, mlp=False, rope=False)
    count["theirs"] = 0
    same(logged(trainer), expected)
    assert count["theirs"] == 0


def test_prepared_before_the_trainer_and_evaluated(tmp_path, count):
    options = {"eval_strategy": "steps", "eval_steps": 1}
    expected = logged(make("SFT", tmp_path, **options))
    model = build("llama")
    liger_hf.apply(model)
    trainer = make("SFT", tmp_path, model=model, **options)
    liger_hf.trl.apply(trainer)
    liger_hf.trl.apply(trainer)
    count["theirs"] = 0
    same(logged(trainer), expected)
    assert count["theirs"] == 0
    liger_hf.revert(model)
    assert not any("forward" in vars(m) for m in model.modules() if m is not model)
    same(logged(make("SFT", tmp_path, **options)), expected)


def test_adapters(tmp_path, count):
    peft = pytest.importorskip("peft")

    def trainer():
        torch.manual_seed(1)
        names = ["q_proj", "gate_proj"]
        config = peft.LoraConfig(r=4, target_modules=names, init_lora_weights=False)
        model = peft.get_peft_model(saved(build("llama"), tmp_path), config)
        return make("DPO", tmp_path, model=model)

    expected, made = logged(trainer()), trainer()
    assert not liger_hf.trl.apply(made).refused
    count["theirs"] = 0
    same(logged(made), expected)
    assert count["theirs"] == 0


@pytest.mark.parametrize("mode", ["train", "eval"])
def test_head_that_cannot_be_left_out(mode, tmp_path):
    """Somebody waits for its logits: they are made, and the contract holds."""
    trainer = make("SFT", tmp_path)
    seen = []
    trainer.model.lm_head.register_forward_hook(lambda *args: seen.append(type(args[2])))
    ids = torch.randint(3, 30, (2, 9), generator=torch.Generator().manual_seed(0))
    model = trainer.model.train(mode == "train")

    def fused(model):
        outputs = model(input_ids=ids, labels=ids.where(ids > 9, -100), fused_lm_head=True)
        kept.append(outputs)
        return outputs.loss

    kept = []
    expected = gradients(model, fused)
    assert [row.reason for row in liger_hf.trl.apply(trainer).refused] == ["has forward hooks"]
    assert_same_step(gradients(model, fused), expected)
    assert seen == [torch.Tensor]
    assert kept[0].keys() == kept[1].keys()
    for name, value in kept[0].items():
        torch.testing.assert_close(kept[1][name], value, rtol=1e-4, atol=1e-5)


def test_router_loss_and_items(tmp_path):
    trainer = make("SFT", tmp_path, model=zoo.tiny("causal-lm", "mixtral"))
    ids = torch.randint(3, 30, (2, 9), generator=torch.Generator().manual_seed(0))
    keywords = {"output_router_logits": True, "num_items_in_batch": torch.tensor(7)}
    labels = ids.where(ids > 9, -100)

    def fused(model):
        return model(input_ids=ids, labels=labels, fused_lm_head=True, **keywords).loss

    def shifted(model):
        shift = torch.nn.functional.pad(labels, (0, 1), value=-100)[:, 1:]
        outputs = model(input_ids=ids, shift_labels=shift, fused_lm_head=True, **keywords)
        assert outputs.log_probs.shape == (2, 9)
        assert outputs.aux_loss > 0
        return outputs.loss

    expected = gradients(trainer.model, fused)
    liger_hf.trl.apply(trainer)
    assert_same_step(gradients(trainer.model, fused), expected, rtol=1e-4)
    assert_same_step(gradients(trainer.model, shifted), expected, rtol=1e-4)


def test_head_in_fp32(tmp_path):
    def trainer():
        model = saved(build("llama", torch.bfloat16), tmp_path)
        return make("GRPO", tmp_path, model=model, cast_lm_head_to_fp32=True)

    expected, made = logged(trainer()), trainer()
    report = liger_hf.trl.apply(made, norms=False, mlp=False, rope=False)
    assert "replaced already" in report.refused[0].reason
    actual = logged(made)
    assert actual[0]["loss"] == pytest.approx(expected[0]["loss"], rel=1e-3, abs=1e-5)
    assert actual[0]["entropy"] == pytest.approx(expected[0]["entropy"], rel=1e-4)


def test_bad_trainers(tmp_path):
    class Holder:
        model = None

    with pytest.raises(TypeError, match="Holder has no model"):
        liger_hf.trl.apply(Holder())
    Holder.model = build("llama")
    with pytest.raises(ValueError, match="Holder has put no fused head on LlamaForCausalLM"):
        liger_hf.trl.apply(Holder())
    trainer = make("SFT", tmp_path)
    with pytest.raises(ValueError, match="loss=False"):
        liger_hf.trl.apply(trainer, loss=False)
    Holder.model.forward = lambda fused_lm_head=False: None
    with pytest.raises(ValueError, match="has no 'FusedCausalLMOutput', unlike"):
        liger_hf.trl.apply(Holder())
    with pytest.raises(TypeError, match="swiglu"):
        liger_hf.trl.apply(trainer, swiglu=True)
