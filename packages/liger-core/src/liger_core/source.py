"""A module's file taken apart into imports and statements, for `vendor`."""

import ast
import importlib
import importlib.util
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

__all__ = ["Import", "Source", "Statement", "is_ours"]

# the module that stands in for a Triton that is not installed; a copied file imports the real one
LANG = "liger_core.lang"
REAL_TRITON = "import triton\nimport triton.language as tl\nHAS_TRITON = True"
STAND_INS = {"triton", "tl", "HAS_TRITON"}


class Import(NamedTuple):
    """`from module import name as bound`, or `import module as bound` where the name is empty."""

    module: str
    name: str
    bound: str

    @property
    def statement(self) -> str:
        return f"from {self.module} import {self.target}" if self.name else f"import {self.target}"

    @property
    def target(self) -> str:
        """What stands after the word `import`."""
        target = self.name or self.module
        alias = self.bound != (self.name or self.module.partition(".")[0])
        return f"{target} as {self.bound}" if alias else target


class Statement:
    """A top-level statement, with the comments above it.

    Attributes:
        text: its source; `gap` blank lines stand before it.
        defines: whether it is a function or class.
        binds, uses: names that it gives a value to, and all others in it.
        extends: the definition that it adds to without a name of its own, as `op.register(f)` does.
    """

    def __init__(self, node: ast.stmt, lines: list[str]):
        self.node = node
        self.text = "\n".join(lines).strip("\n")
        self.defines = isinstance(node, (ast.FunctionDef, ast.ClassDef))
        self.gap = next((i for i, line in enumerate(lines) if line.strip()), 0)
        self.binds = set(_bound(node)) - {"_"}
        self.uses = {n.id for n in ast.walk(node) if isinstance(n, ast.Name)} - self.binds
        self.extends = "" if self.binds else _root(node)

    def imports(self, package: str) -> Iterator[tuple[int, Import]]:
        """Imports inside it, with their lines."""
        for node in ast.walk(self.node):
            if isinstance(node, (ast.Import, ast.ImportFrom)):
                yield from ((node.lineno, found) for found in _imports(node, package))


class Source:
    """The file of a module; `parent` is the package that its relative imports start from."""

    def __init__(self, module: str):
        spec = importlib.util.find_spec(module)
        assert spec is not None, module
        assert spec.origin is not None, module
        assert spec.parent is not None, module
        self.path, self.parent, self.package = (
            Path(spec.origin),
            spec.parent,
            module.partition(".")[0],
        )
        text = _text(module, self.path)
        tree, lines = ast.parse(text), text.split("\n")
        self.docstring = ""
        self.imports: list[Import] = []
        self.statements: list[Statement] = []
        end = 0
        for node in tree.body:
            assert node.end_lineno is not None
            statement = Statement(node, lines[end : node.end_lineno])
            end = node.end_lineno
            if isinstance(node, (ast.Import, ast.ImportFrom)):
                self.imports += _imports(node, self.parent)
            elif node is tree.body[0] and ast.get_docstring(tree) is not None:
                self.docstring = statement.text
            elif not (isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"):
                self.statements.append(statement)

    @property
    def label(self) -> str:
        """Its path from the package on, e.g. liger_core/device.py."""
        return "/".join(self.path.parts[-len(self.parent.split(".")) - 1 :])


def is_ours(module: str) -> bool:
    return module.startswith("liger_")


def _text(module: str, path: Path) -> str:
    text = path.read_text(encoding="utf-8")
    if module != LANG:
        return text
    kept, lines, end = [REAL_TRITON], text.split("\n"), 0
    for node in ast.parse(text).body:
        # with the comments above it
        if not STAND_INS & set(_bound(node)):
            kept += lines[end : node.end_lineno]
        end = node.end_lineno or end
    return "\n".join(kept)


def _bound(node: ast.AST) -> Iterator[str]:
    """Names that a statement binds in its module."""
    if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
        yield node.name
    elif isinstance(node, ast.alias):
        yield node.asname or node.name.partition(".")[0]
    elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
        yield node.id
    elif not isinstance(
        node, (ast.Lambda, ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)
    ):
        for child in ast.iter_child_nodes(node):
            yield from _bound(child)


def _root(node: ast.AST) -> str:
    """`op` in `op.register(f)`, in `op.field = f` and in a definition under `@op.register`."""
    if isinstance(node, ast.FunctionDef) and node.decorator_list:
        node = node.decorator_list[0]
    elif isinstance(node, ast.Assign):
        node = node.targets[0]
    while not isinstance(node, ast.Name):
        if isinstance(node, ast.Call):
            node = node.func
        elif isinstance(node, (ast.Expr, ast.Attribute, ast.Subscript)):
            node = node.value
        else:
            return ""
    return node.id


def _imports(node: ast.Import | ast.ImportFrom, package: str) -> list[Import]:
    if isinstance(node, ast.Import):
        return [Import(a.name, "", a.asname or a.name.partition(".")[0]) for a in node.names]
    module = importlib.util.resolve_name("." * node.level + (node.module or ""), package)
    return [Import(_home(module, a.name), a.name, a.asname or a.name) for a in node.names]


def _home(module: str, name: str) -> str:
    """The module that defines a name which a Liger package passes on, lazily perhaps."""
    spec = importlib.util.find_spec(module) if is_ours(module) else None
    if spec is None or spec.submodule_search_locations is None:
        return module
    value = getattr(importlib.import_module(module), name, None)
    return getattr(value, "__module__", None) or module
