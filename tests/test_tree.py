"""What no file of this repository may contain."""

import re
from pathlib import Path

import pytest
from layout import ROOT, files

TEXT = {"", ".cfg", ".json", ".md", ".py", ".toml", ".txt", ".yaml", ".yml"}
# absolute paths of somebody's machine
MACHINE_PATH = re.compile(r"(?<![\w.<>*])/(?:home|root|Users|work|tmp|mnt|farm)/\w")
BANNER = re.compile(r"^\s*#\s*[-=#*~]{3,}")
WRITTEN = [path for path in files() if path.suffix in TEXT]


@pytest.mark.parametrize("path", WRITTEN, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_file_is_clean(path: Path) -> None:
    lines = path.read_text(encoding="utf-8").splitlines()
    assert not [line for line in lines if MACHINE_PATH.search(line)]
    if path.suffix == ".py":
        assert not [line for line in lines if BANNER.match(line) or not line.isascii()]


def test_unclean_lines_are_seen() -> None:
    assert MACHINE_PATH.search("open('/" + "home/me/x')")
    assert BANNER.match("# " + "-" * 10)


def test_published_numbers_are_those_measured() -> None:
    """What stands between the README's markers is what the committed results say."""
    results = ROOT / "benchmarks" / "results"
    if not list(results.glob("*.json")):
        pytest.skip("nothing was measured yet")
    from liger_core.bench.tables import write_tables

    assert not write_tables(
        results, ROOT / "README.md", ROOT / "docs" / "benchmarks.md", check=True
    )
