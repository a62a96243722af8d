"""Cross entropy over a sharded vocabulary on two ranks; vocab_parallel_*cases.py have the cases."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch


def run_ranks(tmp_path, backend):
    worker = Path(__file__).with_name("vocab_parallel_processes.py")
    command = [sys.executable, str(worker), str(tmp_path / "store"), backend]
    done = subprocess.run(command, capture_output=True, text=True, timeout=280, check=False)
    assert done.returncode == 0, f"{done.stdout[-1000:]}\n{done.stderr[-3000:]}"
    # so that no file of cases goes unseen
    assert "check_digits" in done.stdout
    assert "check_linear_formula" in done.stdout


def test_two_processes(tmp_path):
    """Over gloo, on the CPU: kernels where they are interpreted, else PyTorch."""
    run_ranks(tmp_path, "gloo")


@pytest.mark.gpu
def test_two_gpus(tmp_path):
    """Over NCCL, and captured in a CUDA graph."""
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two GPUs")
    run_ranks(tmp_path, "nccl")
