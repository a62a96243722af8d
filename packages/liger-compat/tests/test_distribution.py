"""The distribution: found by tools, alone under its name, with an alias and a report."""

import base64
import hashlib
import os
import subprocess
import sys
import zipfile
from importlib import metadata
from pathlib import Path

import liger_kernel
import pytest
from liger_kernel.alias import write_alias
from packaging.version import Version

SOURCE = str(Path(liger_kernel.__file__).parents[1])


def python(*command, path=()):
    """Run with folders in front of everything else."""
    folders = [*map(str, path), SOURCE, os.environ.get("PYTHONPATH", "")]
    env = os.environ | {"PYTHONPATH": os.pathsep.join(folders)}
    return subprocess.run(
        [sys.executable, *command], env=env, capture_output=True, text=True, check=False
    )


def distribution(folder, requires):
    info = folder / "liger_kernel-0.8.2.dist-info"
    info.mkdir()
    needs = "".join(f"Requires-Dist: {need}\n" for need in requires)
    (info / "METADATA").write_text(
        f"Metadata-Version: 2.1\nName: liger-kernel\nVersion: 0.8.2\n{needs}"
    )
    return folder


@pytest.mark.parametrize("requires", [[], ["torch>=2.1.2", "triton>=2.3.1"]])
def test_original_distribution_is_refused(tmp_path, requires):
    done = python("-c", "import liger_kernel", path=[distribution(tmp_path, requires)])
    assert done.returncode != 0
    assert "ImportError: liger-compat provides the package liger_kernel" in done.stderr
    assert "pip uninstall liger-kernel liger-compat" in done.stderr


def test_alias_is_a_wheel_without_modules(tmp_path):
    wheel = write_alias(tmp_path / "made")
    assert wheel.name == f"liger_kernel-{liger_kernel.__version__}-py3-none-any.whl"
    with zipfile.ZipFile(wheel) as archive:
        files = {name: archive.read(name) for name in archive.namelist()}
        archive.extractall(tmp_path / "site")
    assert {name.split("/")[1] for name in files} == {"METADATA", "WHEEL", "RECORD"}
    for line in files[next(n for n in files if n.endswith("RECORD"))].decode().splitlines():
        name, digest, size = line.split(",")
        if digest:
            hashed = base64.urlsafe_b64encode(hashlib.sha256(files[name]).digest()).rstrip(b"=")
            assert digest == f"sha256={hashed.decode()}"
            assert int(size) == len(files[name])
    (found,) = metadata.distributions(path=[str(tmp_path / "site")])
    assert found.requires == [f"liger-compat=={liger_kernel.__version__}"]
    done = python(
        "-c", "import importlib.metadata as m, liger_kernel; print(m.version('liger-kernel'))",
        path=[tmp_path / "site"],
    )  # fmt: skip
    assert done.stdout.strip() == liger_kernel.__version__, done.stderr


def test_alias_is_written_by_a_command(tmp_path):
    done = python("-m", "liger_kernel.alias", str(tmp_path))
    assert Path(done.stdout.strip()).exists(), done.stderr
    assert python("-m", "liger_kernel.alias").returncode != 0


def test_version_is_recent_enough_for_every_tool():
    assert Version(liger_kernel.__version__) >= Version("0.8.2")


def test_report():
    done = python("-m", "liger_kernel.env_report")
    assert done.stdout.startswith(f"liger_kernel {liger_kernel.__version__}"), done.stderr
    assert "liger-norms" in done.stdout
