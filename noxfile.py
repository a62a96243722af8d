"""Every task of the repository. Sessions take packages: `nox -s test -- liger-norms -k values`."""

import itertools
import os
import re
import shutil
import sys
import tarfile
import zipfile
from collections.abc import Iterable
from pathlib import Path

import nox

nox.options.sessions = ["lint", "types", "test", "oldest", "wheels"]
nox.options.default_venv_backend = "virtualenv"

ROOT = Path(__file__).parent
PACKAGES = {
    path.parent.name: nox.project.load_toml(path)
    for path in sorted(ROOT.glob("packages/*/pyproject.toml"))
}
# what can share an environment with the peers that are measured: liger-compat has the import name
# of one of them
BESIDE_PEERS = [package for package in PACKAGES if package != "liger-compat"]
# Triton has no wheels elsewhere: kernels are then neither interpreted nor compiled
TRITON = sys.platform == "linux"
# many small tests: processes help, threads of torch beside them do not
PYTEST = ["pytest", "-m", "not gpu", "-n", "2"]
ONE_THREAD = {"OMP_NUM_THREADS": "1"}
COMPILE_CHECK = ["python", "-m", "liger_core.testing.compile_check", "--spilled"]
# The table is of the newest transformers; the oldest computes logits at no mask of positions, and
# its experts do not compile on a CPU.
NEWER = "table_is_current or parameters_are_not_read or packed_tokens_of_a_mask or compiled_model"
OLDEST = ["-k", f"not ({NEWER})"]


@nox.session
def demo(session: nox.Session) -> None:
    """Train a small Llama, plain and patched, and compare; options go to the script."""
    env = _install(session, "packages/liger-hf/pyproject.toml:demo")
    session.run("python", "packages/liger-hf/examples/train_llama.py", *session.posargs, env=env)


@nox.session
def convergence(session: nox.Session) -> None:
    """Train two small models on real text, plain and patched: the curves differ by noise."""
    env = _install(session, "packages/liger-hf/pyproject.toml:test")
    session.run("python", "packages/liger-hf/tests/convergence.py", *session.posargs, env=env)


@nox.session
def test(session: nox.Session) -> None:
    """All that a CPU can check: kernels interpreted and compiled, the PyTorch path, the tree."""
    suites, options = _suites(session)
    _install(session, *_groups("test"), "pyproject.toml:test")
    if TRITON:
        # not interpreted yet: for torch.compile, which traces kernels
        session.install("liger-core[triton]")
    command = [*PYTEST, *options, *suites]
    session.run(*command, *([] if session.posargs else ["tests"]), env=ONE_THREAD)
    if not TRITON:
        return
    launches = Path(session.create_tmp(), "launches.json")
    launches.unlink(missing_ok=True)
    env = ONE_THREAD | {"TRITON_INTERPRET": "1"}
    # the kernels in the tests of liger-core are toys, which nobody ships and compiles
    toys = [suite for suite in suites if "liger-core" in suite]
    # liger-compat has no kernels, and calls those of others through whole trainers
    ops = [s for s in suites if s not in toys and "liger-compat" not in s]
    if toys:
        session.run(*PYTEST, *options, *toys, env=env)
    if ops:
        session.run(*PYTEST, *options, *ops, env=env | {"LIGER_LAUNCHES": str(launches)})
    # tests that were chosen may launch no kernel
    if launches.exists() or not session.posargs:
        # what ptxas of Triton 3.9 spills where that of 3.6, which was measured, does not
        session.run(*COMPILE_CHECK, "128", str(launches))


@nox.session
def oldest(session: nox.Session) -> None:
    """The oldest Triton and transformers that are supported, with the torch of `test`: kernels
    compiled for the shapes of the benchmarks, models patched.
    """
    _install(session, *_groups("test"))
    _install_oldest(session, _oldest("liger-core", "triton"))
    kernels = [f"packages/{p}/tests" for p in PACKAGES if p not in ("liger-compat", "liger-core")]
    launches = Path(session.create_tmp(), "launches.json")
    launches.unlink(missing_ok=True)
    env = ONE_THREAD | {"TRITON_INTERPRET": "1", "LIGER_LAUNCHES": str(launches)}
    session.run(*PYTEST, "-k", "test_bench_launches", *kernels, env=env)
    # registers are for newer compilers to divide
    session.run(*COMPILE_CHECK, "16", str(launches))
    session.run(*PYTEST, *OLDEST, "packages/liger-hf/tests", env=ONE_THREAD)


@nox.session
def oldest_torch(session: nox.Session) -> None:
    """The oldest torch too: all that a CPU can check but the kernels' results. PyPI has that torch
    for CUDA alone, which is gigabytes, so this is no session of every change.
    """
    suites, options = _suites(session)
    _install(session, *_groups("test"))
    _install_oldest(session, _oldest("liger-core", "torch"))
    session.run(*PYTEST, *OLDEST, *options, *suites, env=ONE_THREAD)


@nox.session
def support(session: nox.Session) -> None:
    """Renew the table of supported transformers models, then train every one of them."""
    env = _install(session, "packages/liger-hf/pyproject.toml:test")
    session.run("python", "packages/liger-hf/tests/support.py", env=env | ONE_THREAD)
    env |= ONE_THREAD | {"LIGER_SUPPORT": "all"}
    session.run(*PYTEST, "packages/liger-hf/tests/test_support.py", *session.posargs, env=env)


@nox.session
def gpu(session: nox.Session) -> None:
    """The GPU-marked tests. `nox --no-venv -s gpu` uses the torch that is already there."""
    suites, options = _suites(session, BESIDE_PEERS)
    env = _install(session, *_groups("test"), packages=BESIDE_PEERS)
    session.run("python", "-m", "pytest", "-m", "gpu", *options, *suites, env=env)


@nox.session
def bench(session: nox.Session) -> None:
    """Measure every op beside PyTorch and the installed peers; `-- tables` renews the README."""
    env = _install(session, *_groups("test"), packages=BESIDE_PEERS)
    command = session.posargs or ["run"]
    session.run("python", "-m", "liger_core.bench", *command, env=env)


@nox.session
def lint(session: nox.Session) -> None:
    """Style; `nox -s lint -- --fix` repairs what it can."""
    session.install("--group", "pyproject.toml:lint")
    fix = session.posargs == ["--fix"]
    session.run("ruff", "check", *(["--fix"] if fix else []))
    session.run("ruff", "format", *([] if fix else ["--check", "--diff"]))


@nox.session
def types(session: nox.Session) -> None:
    """Static types of all that is shipped."""
    _install(session, *_groups("test"), "pyproject.toml:types")
    session.run("mypy", *(f"packages/{package}/src" for package in PACKAGES))


@nox.session
def wheels(session: nox.Session) -> None:
    """Build every distribution; install each wheel alone, import it and run its tests."""
    dist = Path(session.create_tmp(), "dist")
    shutil.rmtree(dist, ignore_errors=True)
    # One environment for all, since torch takes a minute to install: third-party needs stay, ours
    # come and go. It has no Triton: here tests run through PyTorch, `test` interprets the kernels.
    session.install("build", "hatchling>=1.27", *_third_party())
    for package in PACKAGES:
        session.run("python", "-m", "build", "-n", "-o", str(dist), f"packages/{package}")
        _check_contents(session, dist, package)
    local = ["--no-index", "--find-links", str(dist)]
    for package in PACKAGES:
        session.run("python", "-m", "pip", "uninstall", "--quiet", "--yes", *PACKAGES)
        session.install(*local, package)
        session.run("python", "-I", "tests/alone.py", package, *_siblings(package))
        session.install(*local, "--group", f"packages/{package}/pyproject.toml:test")
        # isolated from the tree; few random cases, since `test` had many
        tests = f"packages/{package}/tests"
        session.run("python", "-I", "-m", *PYTEST, "--fuzz", "5", tests, env=ONE_THREAD)


def _suites(session: nox.Session, default: Iterable[str] = PACKAGES) -> tuple[list[str], list[str]]:
    """Split what follows `--` into packages, as folders of tests, and options."""
    packages = [name for name in session.posargs if name in PACKAGES] or default
    options = [name for name in session.posargs if name not in PACKAGES]
    return [f"packages/{package}/tests" for package in packages], options


def _groups(group: str) -> list[str]:
    return [f"packages/{package}/pyproject.toml:{group}" for package in PACKAGES]


def _install(
    session: nox.Session, *groups: str, packages: Iterable[str] = PACKAGES
) -> dict[str, str]:
    """Install packages editable, with dependency groups; returns the environment to run in."""
    if not session.virtualenv.is_sandboxed:
        return {"PYTHONPATH": os.pathsep.join(f"{ROOT}/packages/{name}/src" for name in packages)}
    session.install("hatchling>=1.27", "editables")
    editable = (argument for package in packages for argument in ("-e", f"packages/{package}"))
    session.install("--no-build-isolation", *editable)
    session.install(*(argument for group in groups for argument in ("--group", group)))
    return {}


def _import_name(package: str) -> str:
    (path,) = PACKAGES[package]["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]
    return path.removeprefix("src/")


def _siblings(package: str) -> set[str]:
    """Those of ours that the package declares, directly or through another."""
    names = {re.split(r"[<>=]", needed)[0] for needed in _dependencies(package)} & PACKAGES.keys()
    return names.union(*map(_siblings, names))


def _dependencies(package: str) -> list[str]:
    return PACKAGES[package]["project"]["dependencies"]


def _oldest(package: str, needed: str) -> str:
    """The first release of a dependency that a package admits, from its lower bound."""
    project = PACKAGES[package]["project"]
    extras = project.get("optional-dependencies", {}).values()
    bounds = itertools.chain(project["dependencies"], *extras)
    (bound,) = (re.match(r"[^,;]*", b)[0] for b in bounds if re.match(rf"{needed}\b", b))
    return bound.replace(">=", "==") + ".*"


def _install_oldest(session: nox.Session, *versions: str) -> None:
    """These and the oldest transformers, whatever constraints say."""
    # that Triton's interpreter reads numbers as NumPy 2.4 forbids
    versions = *versions, _oldest("liger-hf", "transformers"), "numpy<2.4"
    session.install(*versions, env={"PIP_CONSTRAINT": None})


def _third_party() -> set[str]:
    """What the packages and their tests need that is not ours."""
    tests = (nox.project.dependency_groups(project, "test") for project in PACKAGES.values())
    needed = itertools.chain(*tests, *map(_dependencies, PACKAGES))
    return {requirement for requirement in needed if not requirement.startswith("liger-")}


def _check_contents(session: nox.Session, dist: Path, package: str) -> None:
    """A wheel holds its import package with the licence and nothing else, an sdist all of it."""
    name, distribution = _import_name(package), package.replace("-", "_")
    (wheel,) = dist.glob(f"{distribution}-*.whl")
    (sdist,) = dist.glob(f"{distribution}-*.tar.gz")
    with zipfile.ZipFile(wheel) as archive:
        built = set(archive.namelist())
    with tarfile.open(sdist) as archive:
        source = {member.partition("/")[2] for member in archive.getnames()}
    (info,) = {file.split("/")[0] for file in built if ".dist-info/" in file}
    strays = {file for file in built if file.split("/")[0] not in (name, info)}
    missing = {f"{name}/py.typed", f"{info}/licenses/LICENSE"} - built
    missing |= {"LICENSE", "README.md", "pyproject.toml", "tests"} - {
        s.split("/")[0] for s in source
    }
    if strays or missing:
        session.error(f"{package}: the distributions lack {missing} and should not hold {strays}")
