"""Vocabularies, counts of tokens and FSDP on two ranks; compat_processes has the cases."""

import subprocess
import sys
from pathlib import Path


def test_two_processes(tmp_path):
    worker = Path(__file__).with_name("compat_processes.py")
    command = [sys.executable, str(worker), str(tmp_path / "store")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, f"{done.stdout[-1000:]}\n{done.stderr[-3000:]}"
    assert done.stdout.count("check_") == 4
