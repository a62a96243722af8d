"""The report of `liger env`, here and on machines that are not here."""

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import liger_core.device
import liger_core.env
import pytest
import torch
from liger_core.device import DeviceInfo
from liger_core.env import environment, kernel_packages, render
from liger_core.lang import HAS_TRITON, INTERPRET

WITHOUT_TRITON = """
import sys
sys.modules["triton"] = None
from liger_core.env import environment, render
print(render(environment()))
"""


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty package liger_mine, importable."""
    path = tmp_path / "liger_mine"
    path.mkdir()
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "liger_mine", raising=False)
    return path / "__init__.py"


def entries(report: dict[str, Any], op: str) -> list[dict[str, str]]:
    return [entry for entry in report["ops"] if entry["op"].startswith(op)]


def test_report_is_json() -> None:
    report = environment()
    assert json.loads(json.dumps(report)) == report


def test_versions() -> None:
    versions = environment()["versions"]
    assert versions["torch"] == torch.__version__
    assert versions["python"] == ".".join(map(str, sys.version_info[:3]))
    assert versions["liger-core"] == liger_core.__version__
    assert {"triton", "transformers", "platform"} <= versions.keys()


def test_every_public_function_has_a_path(package: Path) -> None:
    package.write_text("__version__ = '7'\n__all__ = ['Thing', 'thing']\ndef thing(): pass\n")
    report = environment()
    assert "liger_mine" in kernel_packages()
    assert report["versions"]["liger-mine"] == "7"
    (entry,) = entries(report, "liger_mine")
    on_cpu = report["default_device"] == "cpu"
    assert entry["op"] == "liger_mine.thing"
    assert entry["path"] == ("PyTorch" if on_cpu and not INTERPRET else "kernel")
    if on_cpu:
        assert ("TRITON_INTERPRET=1" if HAS_TRITON else "not installed") in entry["reason"]


def test_packages_without_kernels_have_no_ops() -> None:
    assert not {"liger_core", "liger_hf", "liger_kernel"} & set(kernel_packages())


def test_broken_package_and_broken_op_are_reported(package: Path) -> None:
    package.write_text("raise RuntimeError('two\\nlines')\n")
    report = environment()
    assert report["versions"]["liger-mine"] == "cannot be imported: RuntimeError: two lines"
    (entry,) = entries(report, "liger_mine")
    assert (entry["path"], entry["reason"]) == ("none", "RuntimeError: two lines")

    sys.modules.pop("liger_mine", None)
    package.write_text("__all__ = ['thing']\n")
    (entry,) = entries(environment(), "liger_mine")
    assert entry["path"] == "none"
    assert "no attribute 'thing'" in entry["reason"]


def test_gpu_is_described(package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = DeviceInfo("nvidia", "NVIDIA H200", "sm_90", 132, 141 * 2**30)
    monkeypatch.setattr(
        torch.accelerator, "current_accelerator", lambda check_available: torch.device("cuda")
    )
    monkeypatch.setattr(torch.accelerator, "device_count", lambda: 2)
    monkeypatch.setattr(torch.accelerator, "current_device_index", lambda: 1)
    monkeypatch.setattr(liger_core.env, "device_info", lambda device: gpu)
    monkeypatch.setattr(liger_core.env, "_driver", lambda vendor, device: "580.1")
    monkeypatch.setattr(liger_core.env, "use_kernels", lambda x: True)
    monkeypatch.setattr(torch, "empty", lambda size, device: None)
    package.write_text("__all__ = ['thing']\nthing = 1\n")
    report = environment()
    assert report["default_device"] == "cuda:1"
    text = render(report)
    assert "cuda:0" in text
    assert "NVIDIA H200, vendor nvidia, arch sm_90, SMs 132, memory 141.0 GiB, driver 580.1" in text
    assert "kernel: Triton on nvidia sm_90" in text


def test_gpu_without_triton_is_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    old = DeviceInfo("nvidia", "Tesla P100", "sm_60", 56, 2**34)
    assert liger_core.env._reason(False, old).startswith(
        ("no Triton for nvidia sm_60", "triton is not")
    )
    monkeypatch.setattr(liger_core.env, "HAS_TRITON", False)
    assert liger_core.env._reason(False, old) == "triton is not installed"


def test_driver_that_cannot_be_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*args: object, **kwargs: object) -> None:
        raise FileNotFoundError("nvidia-smi")

    monkeypatch.setattr(subprocess, "run", missing)
    assert liger_core.env._driver("nvidia", torch.device("cuda", 0)) is None
    assert liger_core.env._driver("none", torch.device("cpu")) is None


def test_report_without_triton() -> None:
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_TRITON], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert " ".join(done.stdout.split()).count("triton not installed") == 1
    ops = done.stdout.partition("ops on")[2].splitlines()[1:]
    assert all("triton is not installed" in line for line in ops) or ops == ["  none installed"]


def test_script_of_a_user_is_no_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "liger_train.py").write_text("raise AssertionError('it ran')\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert "liger_train" not in kernel_packages()
    assert "liger-train" not in environment()["versions"]


@pytest.mark.parametrize(("capability", "expected"), [((7, 0), False), ((7, 5), True)], ids=str)
def test_old_gpus_have_no_kernels(
    capability: tuple[int, int], expected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They compute through PyTorch, eagerly and in a graph."""
    x = SimpleNamespace(is_cuda=True, is_xpu=False, device=torch.device("cuda", 3))
    x.get_device = lambda: 3
    properties = SimpleNamespace(
        name="X", major=capability[0], minor=capability[1], multi_processor_count=80, total_memory=1
    )
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
    monkeypatch.setattr(torch.version, "hip", None)
    monkeypatch.setattr(liger_core.device, "_INFO", {})
    monkeypatch.setattr(liger_core.device, "_TRITON", {})
    for compiling in (False, True):
        monkeypatch.setattr(torch.compiler, "is_compiling", lambda compiling=compiling: compiling)
        assert liger_core.device.use_kernels(x) == (expected and HAS_TRITON)
