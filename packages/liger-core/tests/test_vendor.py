"""`liger vendor` on a made-up package."""

import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from liger_core.vendor import VendorError, one_file, write
from vendored import load, run_alone

DEMO = {
    "__init__": """
        from liger_core import lazy_exports
        __version__ = "1.2.3"
        __all__ = lazy_exports(__name__, {"double": ("Double", "double"), "bad": ("bad",)})
        """,
    "double": '''
        """Twice x."""

        import math
        from collections.abc import Callable

        import torch
        from liger_core.device import use_kernels
        from liger_core.lang import tl, triton
        from torch import Tensor

        from .parts import half, times

        __all__ = ["Double", "double"]

        # why two
        TWO = int(half(4))
        FOUR = TWO * TWO


        @triton.jit
        def _double_fwd_kernel(X, N: tl.constexpr):
            pass


        # explains double
        def double(x: Tensor, f: Callable | None = None) -> Tensor:
            """2 x."""
            assert math.pi > 3 and not use_kernels(x.double().to("meta"))
            return times(x, TWO)  # the end


        class Double(torch.nn.Module):
            pass
        ''',
    "parts": '''
        """Not wanted."""

        import json
        import operator

        import torch


        def unused():
            return json


        def _product(x, y):
            return operator.mul(x, y)


        # what times is
        def times(x, y):
            return _TABLE["*"](x, y)


        _TABLE = {}
        _TABLE["*"] = _product


        @torch.library.custom_op(f"{__name__.partition('.')[0]}::half", mutates_args=())
        def _half(x: torch.Tensor) -> torch.Tensor:
            return x / 2


        @_half.register_fake
        def _(x):
            return x


        def half(x):
            return _half(torch.tensor(x))
        ''',
}


@pytest.fixture
def demo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The folder of a package liger_demo, importable."""
    package = tmp_path / "liger-demo/src/liger_demo"
    package.mkdir(parents=True)
    for name, text in DEMO.items():
        (package / f"{name}.py").write_text(dedent(text))
    (package.parents[1] / "LICENSE").write_text("Some licence\n\n(c) somebody\n")
    monkeypatch.syspath_prepend(package.parent)
    yield package
    for name in [name for name in sys.modules if name.partition(".")[0] == "liger_demo"]:
        del sys.modules[name]


def dedent(text: str) -> str:
    return re.sub(r"^ {8}", "", text.lstrip("\n"), flags=re.MULTILINE).rstrip(" ")


def change(package: Path, module: str, before: str, after: str) -> None:
    path = package / f"{module}.py"
    text = path.read_text()
    assert before in text
    path.write_text(text.replace(before, after))


def test_needed_definitions_come_along_and_no_others(demo: Path) -> None:
    name, text = one_file("double")
    assert name == "double.py"
    for wanted in (
        "def times",
        "def _product",
        '_TABLE["*"] = _product',
        "def use_kernels",
        "import operator",
    ):
        assert text.count(wanted) == 1, wanted
    for unwanted in (
        "unused",
        "json",
        "Not wanted",
        "device_info",
        "liger_core import",
        "from .",
        "_Absent",
    ):
        assert unwanted not in text, unwanted
    assert (
        text.index("HAS_TRITON = True") < text.index("def use_kernels") < text.index("def double")
    )
    assert text.index("def half") < text.index("TWO = ")


def test_registrations_come_along(demo: Path) -> None:
    _, text = one_file("double")
    assert "@_half.register_fake\ndef _(x):" in text


def test_comments_docstrings_and_spacing_are_kept(demo: Path) -> None:
    _, text = one_file("double")
    assert (
        '\n\n"""Twice x."""\n\nimport math\nimport operator\nimport os\nfrom collections.abc'
        in text
    )
    assert '__all__ = ["Double", "double"]\n\n\n# from liger_core/lang.py\n\n\n' in text
    assert "# why two\nTWO = int(half(4))\nFOUR = TWO * TWO\n\n\n@triton.jit" in text
    assert "\n\n\n# what times is\ndef times(x, y):" in text
    assert "    return times(x, TWO)  # the end\n\n\nclass Double" in text


def test_header_names_versions_and_licences(demo: Path) -> None:
    header = one_file("double")[1].partition('"""')[0]
    assert "#   liger-demo 1.2.3: liger_demo/double.py liger_demo/parts.py\n" in header
    assert "liger-core 0." in header
    assert "SPDX-License-Identifier: BSD-2-Clause" in header
    assert "# Some licence\n#\n# (c) somebody\n" in header
    assert "# Redistribution and use in source and binary forms" in header


def test_licence_that_is_not_there_is_an_error(demo: Path) -> None:
    (demo.parents[1] / "LICENSE").unlink()
    with pytest.raises(VendorError, match="licence of liger_demo"):
        one_file("double")


def test_file_runs_without_liger(demo: Path, tmp_path: Path) -> None:
    pytest.importorskip("triton", reason="a vendored file imports Triton")
    path = write("Double", tmp_path / "new/folder")
    run_alone(str(path))
    assert torch.equal(load(path, "vendored_double").double(torch.ones(2)), torch.full((2,), 2.0))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (
            "def times():\n    pass",
            "two things are named times: in liger_demo/parts.py and in liger",
        ),
        ("import os.path as operator\noperator", "two things are named operator"),
        ("from .parts import times as t\nt", "cannot be brought along"),
        ("from . import parts\nparts", "cannot be brought along"),
        ("import liger_core.device\nliger_core", "cannot be brought along"),
        ("def f():\n    from .parts import unused", "import inside a block"),
        ("if True:\n    from liger_core.launch import launch", "import inside a block"),
    ],
)
def test_what_cannot_be_one_file_is_an_error(demo: Path, line: str, message: str) -> None:
    change(demo, "double", "class Double", f"{line}\n\n\nclass Double")
    with pytest.raises(VendorError, match=message) as error:
        one_file("double")
    assert "\n" not in str(error.value)


def test_imports_for_type_checkers_are_left_out(demo: Path) -> None:
    change(
        demo,
        "double",
        "# why",
        "if TYPE_CHECKING:\n    from liger_core.launch import launch\n\n# why",
    )
    change(demo, "double", "import math", "import math\nfrom typing import TYPE_CHECKING")
    assert "import launch" not in one_file("double")[1]


def test_unknown_op_lists_the_known(demo: Path) -> None:
    with pytest.raises(VendorError, match=r"unknown op 'nothing'; known: .*\bdouble\b"):
        one_file("nothing")


def test_existing_file_stays_unless_forced(demo: Path, tmp_path: Path) -> None:
    path = tmp_path / "double.py"
    path.write_text("mine")
    with pytest.raises(VendorError, match="exists; --force"):
        write("double", tmp_path)
    assert path.read_text() == "mine"
    assert write("double", tmp_path, force=True).read_text() == one_file("double")[1]


def test_folder_that_cannot_be_written(
    demo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(VendorError, match="file is not a folder"):
        write("double", tmp_path / "file")
    with pytest.raises(VendorError, match=r"cannot write .*: Not a directory"):
        write("double", tmp_path / "file/below")

    def denied(*args: object, **kwargs: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "mkdir", denied)
    with pytest.raises(VendorError, match=r"cannot write .*: Permission denied"):
        write("double", tmp_path)
