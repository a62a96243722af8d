"""`liger vendor`: an op as one file that needs only torch and triton.

The op's file is copied whole. What it imports from Liger packages comes along: the definitions
that it names, those that they name, and so on, each as its source text with its comments. Modules
keep the order in which they import each other, so that everything is defined before it is used.

Names are followed without regard to scopes: a local variable with the name of a definition brings
that along too.
"""

import importlib
import itertools
import sys
import textwrap
from collections.abc import Iterable, Iterator
from importlib import metadata
from pathlib import Path

from .env import kernel_packages
from .source import Import, Source, Statement, is_ours

__all__ = ["VendorError", "one_file", "write"]


class VendorError(Exception):
    """The op cannot be written as one file; the message is one line."""


class Closure:
    """What the file of an op needs: statements of Liger modules, and `outer`, other imports."""

    def __init__(self, module: str):
        self.sources: dict[str, Source] = {}
        self.kept: dict[Source, set[Statement]] = {}
        self.outer: set[Import] = set()
        self.main = self._source(module)
        for statement in self.main.statements:
            self._keep(self.main, statement)
        self._check_names()

    def parts(self) -> Iterator[tuple[Source, list[Statement]]]:
        """The statements to write, by source, each source after those that it imports."""
        for source in self.sources.values():
            kept = self.kept.get(source, set())
            if kept:
                yield source, [statement for statement in source.statements if statement in kept]

    def _source(self, module: str) -> Source:
        if module not in self.sources:
            source = Source(module)
            for needed in source.imports:
                if is_ours(needed.module):
                    self._source(needed.module)
            self.sources[module] = source
        return self.sources[module]

    def _keep(self, source: Source, statement: Statement) -> None:
        kept = self.kept.setdefault(source, set())
        if statement in kept:
            return
        kept.add(statement)
        for line, found in statement.imports(source.parent):
            if is_ours(found.module):
                raise VendorError(
                    f"{source.path}:{line}: an import inside a block cannot be brought along"
                )
        for name in sorted(statement.uses):
            self._need(source, name)
        for other in source.statements:
            if other.extends in statement.binds:
                self._keep(source, other)

    def _need(self, source: Source, name: str) -> None:
        """Keep what defines a global name of `source`. Locals and builtins are found nowhere."""
        for statement in source.statements:
            if name in statement.binds:
                self._keep(source, statement)
        for found in source.imports:
            if found.bound != name:
                continue
            if not is_ours(found.module):
                self.outer.add(found)
            elif found.name != name or not self._defines(found):
                raise VendorError(
                    f"{source.path}: {found.statement!r} cannot be brought along; import names"
                )
            else:
                self._need(self.sources[found.module], name)

    def _defines(self, found: Import) -> bool:
        source = self.sources[found.module]
        return any(found.name in s.binds for s in source.statements) or any(
            found.name == i.bound for i in source.imports
        )

    def _check_names(self) -> None:
        bound = [
            (name, source.label) for source, kept in self.parts() for s in kept for name in s.binds
        ]
        bound += [
            (found.bound, found.statement if found.name else found.module.partition(".")[0])
            for found in sorted(self.outer)
        ]
        owners: dict[str, str] = {}
        for name, owner in bound:
            if owners.setdefault(name, owner) != owner:
                raise VendorError(
                    f"two things are named {name}: in {owners[name]} and in {owner}; rename one"
                )


def one_file(op: str) -> tuple[str, str]:
    """Name and text of the file with the public function or module `op`.

    Raises:
        VendorError: no installed kernel package has it, or it cannot be one file.
    """
    known = {
        name: package
        for package in kernel_packages()
        for name in getattr(importlib.import_module(package), "__all__", ())
    }
    if op not in known:
        listed = ", ".join(sorted(known)) or "none, no kernel package is installed"
        raise VendorError(f"unknown op {op!r}; known: {listed}")
    closure = Closure(getattr(importlib.import_module(known[op]), op).__module__)
    exports = [statement for statement in closure.main.statements if "__all__" in statement.binds]
    top = [
        _header(op, closure),
        closure.main.docstring,
        _import_block(closure.outer),
        *(s.text for s in exports),
    ]
    text = "\n\n".join(part for part in top if part)
    for source, kept in closure.parts():
        text += f"\n\n\n# from {source.label}"
        text += _body([statement for statement in kept if statement not in exports])
    return closure.main.path.name, text + "\n"


def write(op: str, folder: str | Path, force: bool = False) -> Path:
    """Write `one_file(op)` into `folder`, which is made if it does not exist; returns the path.

    Raises:
        VendorError: as `one_file`; the file exists and `force` is not set; it cannot be written.
    """
    name, text = one_file(op)
    path = Path(folder, name)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("w" if force else "x", encoding="utf-8", newline="\n") as file:
            file.write(text)
    except FileExistsError:
        problem = (
            f"{path} exists; --force overwrites it"
            if path.parent.is_dir()
            else f"{folder} is not a folder"
        )
        raise VendorError(problem) from None
    except OSError as error:
        raise VendorError(f"cannot write {path}: {error.strerror}") from None
    return path


def _body(statements: list[Statement]) -> str:
    """With the blank lines of the source, and two on both sides of a definition."""
    text, after_definition = "", True
    for statement in statements:
        gap = 2 if statement.defines or after_definition else min(statement.gap, 1)
        text += "\n" * (1 + gap) + statement.text
        after_definition = statement.defines
    return text


def _header(op: str, closure: Closure) -> str:
    """Where the code comes from, and the licence: its text must stay with copies of the source."""
    main = closure.main
    sources = [source for source, _ in closure.parts()]
    # the op's own file first, then its package
    sources.sort(
        key=lambda source: (source is not main, source.package != main.package, source.package)
    )
    lines = [f"{op}, written by `liger vendor {op}`.", "Needs torch and triton. From:"]
    for package, group in itertools.groupby(sources, lambda source: source.package):
        version = importlib.import_module(package).__version__
        origin = f"{package.replace('_', '-')} {version}:"
        labels = " ".join([origin, *(source.label for source in group)])
        lines += textwrap.wrap(labels, 96, initial_indent="  ", subsequent_indent="    ")
    lines += ["", "SPDX-License-Identifier: BSD-2-Clause", ""]
    lines += "\n\n".join(dict.fromkeys(map(_licence, sources))).splitlines()
    return "\n".join(f"# {line}".rstrip() for line in lines)


def _licence(source: Source) -> str:
    """The LICENSE of an installed package, or of the tree that it is imported from."""
    try:
        text = metadata.distribution(source.package).read_text("licenses/LICENSE")
    except metadata.PackageNotFoundError:
        text = None
    # packages/liger-core/src/liger_core/device.py
    beside = source.path.parents[source.label.count("/") + 1] / "LICENSE"
    if text is None and beside.is_file():
        text = beside.read_text(encoding="utf-8")
    if text is None:
        raise VendorError(
            f"the licence of {source.package} is not installed; it must be copied with the code"
        )
    return text.strip()


def _import_block(imports: Iterable[Import]) -> str:
    """Python's own modules first, `import` before `from`, one line for each module."""
    names: dict[tuple[bool, bool, str], list[str]] = {}
    for found in sorted(imports):
        outside = found.module.partition(".")[0] not in sys.stdlib_module_names
        start = f"from {found.module} import" if found.name else f"import {found.target}"
        names.setdefault((outside, bool(found.name), start), []).append(
            found.target if found.name else ""
        )
    groups = itertools.groupby(sorted(names), lambda key: key[0])
    return "\n\n".join(
        "\n".join(f"{key[2]} {', '.join(names[key])}".rstrip() for key in group)
        for _, group in groups
    )
