"""Where things are in this repository, for the tests beside this file."""

import ast
import subprocess
from pathlib import Path

import tomli

ROOT = Path(__file__).parents[1]
PROJECTS = {
    path.parent.name: tomli.loads(path.read_text())
    for path in sorted(ROOT.glob("packages/*/pyproject.toml"))
}
KERNEL_PACKAGES = ("liger-activations", "liger-losses", "liger-norms", "liger-rope")


def import_name(package: str) -> str:
    """That of the one folder in its src/; all but liger-compat's is that of the distribution."""
    (path,) = PROJECTS[package]["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]
    return str(path.removeprefix("src/"))


def folder(package: str) -> Path:
    return ROOT / "packages" / package


def source(package: str) -> Path:
    return folder(package) / "src" / import_name(package)


def modules(package: str) -> list[Path]:
    return sorted(source(package).rglob("*.py"))


def parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text(), str(path))


def files() -> list[Path]:
    """All files of the repository: tracked, or new and not ignored."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    )
    paths = (ROOT / name for name in listed.stdout.split("\0") if name)
    return sorted(path for path in paths if path.is_file())
