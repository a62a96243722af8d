"""Files and functions stay small; exceptions stand in the root pyproject.toml with a reason."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest
import tomli
from layout import ROOT, files, parse

LIGER = tomli.loads((ROOT / "pyproject.toml").read_text())["tool"]["liger"]
BUDGETS, EXCEPTIONS = LIGER["budgets"], LIGER["exceptions"]
PYTHON = [path for path in files() if path.suffix == ".py"]


def kind(path: Path, tree: ast.Module) -> str:
    """`test`, `kernel` (it defines one) or `source`."""
    if "tests" in path.relative_to(ROOT).parts:
        return "test"
    functions = (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef))
    marks = (ast.unparse(mark) for function in functions for mark in function.decorator_list)
    return "kernel" if any(mark.startswith("triton.jit") for mark in marks) else "source"


def functions(tree: ast.AST, prefix: str = "") -> Iterator[tuple[str, int]]:
    """Qualified name and lines, without the docstring, of every function."""
    for node in ast.iter_child_nodes(tree):
        name = f"{prefix}{getattr(node, 'name', '')}"
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            assert node.end_lineno is not None
            doc = node.body[0]
            skipped = 0
            if ast.get_docstring(node) is not None and doc.end_lineno is not None:
                skipped = doc.end_lineno - doc.lineno + 1
            yield name, node.end_lineno - node.lineno + 1 - skipped
        named = isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef))
        yield from functions(node, f"{name}." if named else prefix)


def sizes(path: Path) -> Iterator[tuple[str, int, int]]:
    """What is measured, its lines and its budget."""
    tree, name = parse(path), path.relative_to(ROOT).as_posix()
    yield name, len(path.read_text().splitlines()), BUDGETS[kind(path, tree)]
    for function, lines in functions(tree):
        yield f"{name}::{function}", lines, BUDGETS["function"]


@pytest.mark.parametrize("path", PYTHON, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_file_is_within_its_budget(path: Path) -> None:
    over = {
        name: f"{lines} lines of {budget}"
        for name, lines, budget in sizes(path)
        if lines > EXCEPTIONS.get(name, {}).get("lines", budget)
    }
    assert not over


def test_exceptions_have_a_reason_and_are_needed() -> None:
    measured = {name: (lines, budget) for path in PYTHON for name, lines, budget in sizes(path)}
    for name, exception in EXCEPTIONS.items():
        lines, budget = measured[name]
        assert exception["reason"], name
        assert budget < lines <= exception["lines"], name


def test_long_function_is_measured() -> None:
    code = 'class A:\n    def f(self):\n        """Doc\n        string."""\n' + "        f()\n" * 70
    assert list(functions(ast.parse(code))) == [("A.f", 71)]
