"""Two ranks train as one process does; two_processes.py and zero_stages.py have the checks."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch


def run_script(name, *arguments, **env):
    command = [sys.executable, str(Path(__file__).with_name(name)), *arguments]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=280, check=False, env=os.environ | env
    )
    assert done.returncode == 0, f"{done.stdout[-1000:]}\n{done.stderr[-3000:]}"
    return done.stdout


def test_two_processes(tmp_path):
    """DDP, FSDP2 and FSDP1 over gloo: losses and gradients are those of the plain model."""
    assert "check_fsdp1_refusals" in run_script("two_processes.py", str(tmp_path / "store"), "gloo")


@pytest.mark.gpu
def test_two_gpus(tmp_path):
    """The same over NCCL, with the kernels."""
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two GPUs")
    assert "check_fsdp1_refusals" in run_script("two_processes.py", str(tmp_path / "store"), "nccl")


def test_zero(tmp_path):
    pytest.importorskip("deepspeed")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    run_script("zero_stages.py", port, str(tmp_path), DS_ACCELERATOR="cpu")
