"""What tells devices and packages apart."""

import logging

import pytest
import torch
from liger_kernel import utils
from liger_kernel.triton import apply_liger_triton_cache_manager


def test_this_machine():
    assert utils.infer_device() in ("cpu", "cuda", "npu", "xpu")
    assert utils.infer_comm_backend() in ("gloo", "hccl", "nccl", "xccl")
    assert utils.is_npu_available() == (utils.infer_device() == "npu")
    assert utils.is_peft_available() is utils.PEFT_AVAILABLE is True
    if utils.infer_device() == "cpu":
        assert utils.infer_device_arch() == "cpu"
        with pytest.raises(RuntimeError, match="no accelerator"):
            utils.get_total_gpu_memory()


@pytest.mark.parametrize(
    ("capability", "name"),
    [((9, 0), "hopper"), ((8, 9), "ampere_ada"), ((10, 3), "blackwell_ultra"), ((9, 9), "sm_99")],
)
def test_families_of_nvidia(monkeypatch, capability, name):
    monkeypatch.setattr(utils, "infer_device", lambda: "cuda")
    monkeypatch.setattr(torch.version, "hip", None)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
    utils.infer_device_arch.cache_clear()
    assert utils.infer_device_arch() == name
    utils.infer_device_arch.cache_clear()


def test_versions_of_transformers():
    def call(*args, **kwargs):
        return args, kwargs

    after = {"before_fn": None, "after_fn": call, "after_args": (1,), "after_kwargs": {"x": 2}}
    assert utils.transformers_version_dispatch("4.0.0", **after) == ((1,), {"x": 2})
    before = {"before_fn": call, "after_fn": None, "before_args": (3,)}
    assert utils.transformers_version_dispatch("999.0.0", **before) == ((3,), {})


def test_cache_manager_is_tritons(caplog, monkeypatch):
    with caplog.at_level(logging.INFO):
        apply_liger_triton_cache_manager()
    assert "cache manager" in caplog.text
