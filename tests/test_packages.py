"""Every package looks like every other one; a difference is a bug."""

import ast
import importlib
import re

import pytest
from layout import PROJECTS, ROOT, folder, import_name, parse, source

# what all packages state alike
SHARED = (
    "license",
    "license-files",
    "readme",
    "requires-python",
    "authors",
    "classifiers",
    "dynamic",
)
INSIDE = {"LICENSE", "README.md", "benchmarks", "pyproject.toml", "src", "tests"}
# a package that goes by the import name of another
STANDS_IN = {"liger-compat": "liger_kernel"}
packages = pytest.mark.parametrize("package", PROJECTS)


def version(package: str) -> str:
    text = (source(package) / "__init__.py").read_text()
    found = re.findall(r'^__version__ = "(\d+\.\d+\.\d+)"$', text, re.MULTILINE)
    assert len(found) == 1, package
    return str(found[0])


@packages
def test_same_inside(package: str) -> None:
    inside = {path.name for path in folder(package).iterdir() if not path.name.startswith(".")}
    assert INSIDE <= inside <= INSIDE | {"examples"}
    assert import_name(package) == STANDS_IN.get(package, package.replace("-", "_"))
    assert [path.name for path in (folder(package) / "src").iterdir()] == [import_name(package)]
    assert (source(package) / "py.typed").read_text() == ""
    assert list((folder(package) / "tests").glob("test_*.py"))


@packages
def test_same_metadata(package: str) -> None:
    first, project = next(iter(PROJECTS.values())), PROJECTS[package]
    for key in SHARED:
        assert project["project"][key] == first["project"][key], key
    assert project["build-system"] == first["build-system"]
    assert project["project"]["name"] == package
    assert project["project"]["license"] == "BSD-2-Clause"
    name = import_name(package)
    assert project["tool"]["hatch"] == {
        "version": {"path": f"src/{name}/__init__.py"},
        "build": {"targets": {"wheel": {"packages": [f"src/{name}"]}}},
    }
    # a package may need more than liger-core for its tests, never other versions
    common = PROJECTS["liger-core"]["dependency-groups"]["test"]
    assert set(common) <= set(project["dependency-groups"]["test"])


@packages
def test_siblings_are_pinned_to_this_minor_version(package: str) -> None:
    project = PROJECTS[package]
    extras = project["project"].get("optional-dependencies", {}).values()
    groups = project["dependency-groups"].values()
    needs = [n for group in (project["project"]["dependencies"], *extras, *groups) for n in group]
    for sibling in PROJECTS:
        pins = {need for need in needs if re.match(rf"{sibling}\b(?!-)", need)}
        major, minor, _ = version(sibling).split(".")
        assert major == "0"
        assert pins <= {f"{sibling}>=0.{minor},<0.{int(minor) + 1}"}


@packages
def test_licence_is_the_same_everywhere(package: str) -> None:
    assert (folder(package) / "LICENSE").read_text() == (ROOT / "LICENSE").read_text()
    assert PROJECTS[package]["project"]["license-files"] == ["LICENSE"]


@packages
def test_type_checkers_see_the_lazy_exports(package: str) -> None:
    """The imports under TYPE_CHECKING and the table of `lazy_exports` name the same things."""
    tree = parse(source(package) / "__init__.py")
    static: dict[str, tuple[str, ...]] = {}
    lazy: dict[str, tuple[str, ...]] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            for item in node.body:
                assert isinstance(item, ast.ImportFrom)
                assert item.level == 1
                assert all(alias.asname == alias.name for alias in item.names)
                static[item.module or ""] = tuple(sorted(alias.name for alias in item.names))
        elif isinstance(node, ast.Call) and ast.unparse(node.func) == "lazy_exports":
            table = ast.literal_eval(node.args[1])
            lazy = {module: tuple(sorted(names)) for module, names in table.items()}
    assert static == lazy


@pytest.mark.parametrize("package", [p for p in PROJECTS if p not in STANDS_IN])
def test_readme_names_what_is_public(package: str) -> None:
    text = (folder(package) / "README.md").read_text()
    public = importlib.import_module(import_name(package)).__all__
    assert not [name for name in public if not re.search(rf"\b{name}\b", text)]
