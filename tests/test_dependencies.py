"""Who may import what. A kernel package stands on torch, triton and liger_core, nothing else."""

import ast
import sys
from collections.abc import Iterator
from typing import NamedTuple

import pytest
from layout import KERNEL_PACKAGES, PROJECTS, import_name, modules, parse, source

OURS = {import_name(package) for package in PROJECTS}
KERNELS = {import_name(package) for package in KERNEL_PACKAGES}
# package -> what it may import beside itself and the standard library
LAW = {
    "liger-core": {"torch", "triton"},
    **{package: {"torch", "triton", "liger_core"} for package in KERNEL_PACKAGES},
    "liger-posttrain": {"torch", "triton", "liger_core", "liger_losses"},
    "liger-hf": {"torch", "transformers", "liger_core", *KERNELS},
    "liger-compat": {"torch", "transformers", *OURS},
}
# the packages whose imports of a kernel package wait until it is used, so that it may be missing
LATE = {"liger-hf": KERNELS}
# parts of liger-core for developers, with the test needs at their disposal
DEVELOPER = {"bench": {"numpy"}, "testing": {"hypothesis", "numpy", "pytest"}}


class Import(NamedTuple):
    module: str
    name: str
    line: int
    late: bool


def imports(tree: ast.AST, late: bool = False) -> Iterator[Import]:
    """Every absolute import, and whether it waits for a call (or is read by type checkers only)."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import):
            yield from (Import(alias.name, "", node.lineno, late) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            module = node.module or ""
            yield from (Import(module, alias.name, node.lineno, late) for alias in node.names)
        function = isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))
        typing = isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        yield from imports(node, late or function or typing)


def private_uses(tree: ast.AST, own: str) -> Iterator[str]:
    """Names with a leading underscore that come from another of our packages."""
    bound = set()
    for item in imports(tree):
        root = item.module.split(".")[0]
        if root in OURS - {own}:
            bound.add(item.name or root)
            path = [*item.module.split("."), item.name]
            if any(part.startswith("_") and not part.endswith("__") for part in path):
                yield f"line {item.line}: {item.module} {item.name}"
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and node.attr.startswith("_"):
            base = ast.unparse(node.value).split(".")[0]
            if base in bound and not node.attr.endswith("__"):
                yield f"line {node.lineno}: {ast.unparse(node)}"


def unlawful(tree: ast.AST, package: str, extra: set[str]) -> Iterator[str]:
    allowed = LAW[package] | extra | {import_name(package)} | sys.stdlib_module_names
    for item in imports(tree):
        root = item.module.split(".")[0]
        early = root in LATE.get(package, set()) and not item.late
        if root not in allowed or early:
            yield f"line {item.line}: {item.module}{' outside a function' if early else ''}"


def test_law_names_every_package() -> None:
    assert LAW.keys() == PROJECTS.keys()


@pytest.mark.parametrize("package", PROJECTS)
def test_imports_are_lawful(package: str) -> None:
    broken = []
    for path in modules(package):
        part = path.relative_to(source(package)).parts[0].removesuffix(".py")
        extra = DEVELOPER.get(part, set()) if package == "liger-core" else set()
        broken += [f"{path}: {found}" for found in unlawful(parse(path), package, extra)]
    assert not broken


@pytest.mark.parametrize("package", PROJECTS)
def test_no_private_names_of_siblings(package: str) -> None:
    own = import_name(package)
    assert not [f"{p}: {use}" for p in modules(package) for use in private_uses(parse(p), own)]


@pytest.mark.parametrize("package", PROJECTS)
def test_declared_dependencies_follow_the_law(package: str) -> None:
    """The declared siblings are those the law allows early; the late ones are extras."""
    project = PROJECTS[package]["project"]
    extras = project.get("optional-dependencies", {}).get("all", [])
    declared, optional = (
        {import_name(name) for name in (need.split(">")[0] for need in needs) if name in PROJECTS}
        for needs in (project["dependencies"], extras)
    )
    late = LATE.get(package, set())
    assert declared == (LAW[package] & OURS) - late - {import_name(package)}
    assert optional == late


@pytest.mark.parametrize(
    ("package", "code"),
    [
        ("liger-norms", "import numpy"),
        ("liger-norms", "def f():\n    from liger_losses import cross_entropy"),
        ("liger-hf", "from liger_norms import rms_norm"),
        ("liger-hf", "if True:\n    import liger_rope"),
        ("liger-core", "import liger_norms.rms_norm"),
    ],
)
def test_unlawful_import_is_seen(package: str, code: str) -> None:
    assert list(unlawful(ast.parse(code), package, set()))


@pytest.mark.parametrize(
    "code",
    [
        "from liger_core.device import _query",
        "from liger_core import launch\nlaunch._compiled.clear()",
        "import liger_core\nliger_core.launch._compiled",
        "import liger_core._hidden",
    ],
)
def test_private_name_of_a_sibling_is_seen(code: str) -> None:
    assert list(private_uses(ast.parse(code), "liger_norms"))
