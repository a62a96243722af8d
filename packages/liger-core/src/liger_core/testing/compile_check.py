"""Compile every kernel specialisation of a manifest for GPUs that are not there.

    python -m liger_core.testing.compile_check launches.json [more.json ...]

The Triton wheel carries all compilers; no driver and no GPU is needed, but TRITON_INTERPRET must be
unset. A specialisation must compile, fit the shared memory and the threads of a block, and hold
none of the patterns of `ttir.py`, for one of the targets, or with --every for each. At listed
shapes (the benchmarks') it is always each, and it must not spill registers either, nor hold what
`layouts.py` finds. A number that cannot be read is a finding, as is an empty manifest. The exit
code is 1 if there are findings.
"""

import argparse
import contextlib
import importlib
import importlib.util
import json
import os
import sys
import time
import warnings
import zlib
from collections import defaultdict
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

from .layouts import crowded
from .spills import SPILLS, compiler_log
from .ttir import findings

__all__ = ["check", "compile_for", "main", "select", "targets"]

Entry = dict[str, Any]

# backend, architecture, threads of a warp, bytes of shared memory (Triton enforces no limit)
TARGETS: dict[str, tuple[str, int | str, int, int]] = {
    "sm_80": ("cuda", 80, 32, 166_912),
    "sm_90": ("cuda", 90, 32, 232_448),
    "sm_100": ("cuda", 100, 32, 232_448),
    "gfx942": ("hip", "gfx942", 64, 65_536),
}
MAX_THREADS = 1024
_INTEGERS = ("i32", "i64", "u64")


def select(entries: list[Entry]) -> list[Entry]:
    """One entry per distinct code.

    Of those that differ only in what Triton takes from values (alignment, divisibility by 16,
    integers equal to 1): all listed ones, as specialised as it gets, and the least specialised.
    """
    groups: dict[str, list[Entry]] = defaultdict(list)
    for entry in entries:
        groups[_group(entry)].append(entry)
    chosen: list[Entry] = []
    for group in groups.values():
        group.sort(key=lambda e: (len(e["aligned"]) + len(e["ones"]), len(e["small"])))
        kept = [group[0], *(e for e in group if e["listed"])]
        chosen += {json.dumps(e, sort_keys=True): e for e in kept}.values()
    return chosen


def _group(entry: Entry) -> str:
    ones = entry["ones"]
    types = {
        n: "integer" if n in ones or t in _INTEGERS else t for n, t in entry["signature"].items()
    }
    constants = {n: v for n, v in entry["constants"].items() if n not in ones}
    key = [entry["module"], entry["name"], types, constants, entry["options"]]
    return json.dumps(key, sort_keys=True)


def check(entry: Entry, target: str, spilled: int = 0) -> list[str]:
    """The findings on one specialisation and one target; `spilled` bytes are none at listed
    shapes.
    """
    try:
        with compiler_log() if entry["listed"] else contextlib.nullcontext() as log:
            compiled = compile_for(entry, target)
        problems = findings(compiled.asm["ttir"])
        backend, _, warp, shared = TARGETS[target]
        if compiled.metadata.shared > shared:
            problems.append(f"shared memory {compiled.metadata.shared} of {shared} bytes")
        if compiled.metadata.num_warps * warp > MAX_THREADS:
            problems.append(f"{compiled.metadata.num_warps * warp} threads of {MAX_THREADS}")
        if log is not None:
            problems += crowded(compiled.asm["ttgir"])
            spills = SPILLS[backend](compiled, log.getvalue())
            problems += [f"spills {spills} bytes"] if spills > spilled else []
    except Exception as error:
        # whatever the compiler raises is a finding
        lines = str(error).strip().splitlines()
        # Triton shows the source first and says what is wrong last
        return [f"{type(error).__name__}: {lines[-1].strip()[:150] if lines else ''}"]
    return problems


def compile_for(entry: Entry, target: str) -> Any:
    """What Triton makes of a line of a manifest."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    odd = [t for t in entry["signature"].values() if t.startswith("unsupported")]
    odd += [
        v["unsupported"]
        for v in entry["constants"].values()
        if isinstance(v, dict) and "unsupported" in v
    ]
    if odd:
        raise TypeError(f"arguments that the manifest cannot describe: {odd}")
    kernel = getattr(_module(entry), entry["name"])
    constants = {name: _constant(value) for name, value in entry["constants"].items()}
    backend, arch, warp, _ = TARGETS[target]
    # as `launch` does
    warps = min(entry["options"]["num_warps"], MAX_THREADS // warp)
    options = entry["options"] | {"num_warps": warps}
    attrs: dict[tuple[int], list[list[Any]]] = defaultdict(list)
    for name in entry["aligned"]:
        attrs[(kernel.arg_names.index(name),)].append(["tt.divisibility", 16])
    for name in entry["small"] if backend == "hip" else ():
        attrs[(kernel.arg_names.index(name),)].append(["tt.pointer_range", 32])
    source = ASTSource(
        fn=kernel, signature=entry["signature"], constexprs=constants, attrs=dict(attrs)
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return triton.compile(source, target=GPUTarget(backend, arch, warp), options=options)


def _module(entry: Entry) -> Any:
    name, file = entry["module"], entry["file"]
    if name in sys.modules:
        return sys.modules[name]
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError:
        # a kernel of a test file
        spec = importlib.util.spec_from_file_location(name, file)
        assert spec is not None, file
        assert spec.loader is not None, file
        module = sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module


def _constant(value: Any) -> Any:
    import triton.language as tl

    return tl.dtype(value["dtype"]) if isinstance(value, dict) else value


def targets(entry: Entry, every: bool = False) -> list[str]:
    """Where it is compiled: at listed shapes everywhere, else for a target that its code draws."""
    if every or entry["listed"]:
        return list(TARGETS)
    return [list(TARGETS)[zlib.crc32(_group(entry).encode()) % len(TARGETS)]]


def _check_all(entry: Entry, every: bool, spilled: int) -> list[tuple[str, str]]:
    return [(t, problem) for t in targets(entry, every) for problem in check(entry, t, spilled)]


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m liger_core.testing.compile_check", description=__doc__.split("\n")[0]
    )
    parser.add_argument(
        "manifest", nargs="+", type=Path, help="file written by pytest --launches or LIGER_LAUNCHES"
    )
    parser.add_argument("-j", type=int, default=2, dest="jobs", help="processes (default 2)")
    parser.add_argument(
        "--spilled", type=int, default=0, help="bytes that a listed shape may spill (default 0)"
    )
    parser.add_argument("--every", action="store_true", help="every target, at any shape")
    options = parser.parse_args(arguments)
    if os.environ.get("TRITON_INTERPRET", "0").lower() in ("1", "true", "on", "y", "yes"):
        parser.error("unset TRITON_INTERPRET: an interpreted kernel cannot be compiled")
    missing = [str(path) for path in options.manifest if not path.exists()]
    if missing:
        parser.error(f"no such manifest: {', '.join(missing)}")
    start = time.perf_counter()
    entries = select([entry for path in options.manifest for entry in json.loads(path.read_text())])
    table: dict[tuple[str, str], list[tuple[Entry, str]]] = defaultdict(list)
    with ProcessPoolExecutor(options.jobs) as pool:
        run = partial(_check_all, every=options.every, spilled=options.spilled)
        checked = pool.map(run, entries, chunksize=4)
        for entry, found in zip(entries, checked, strict=True):
            for target, problem in found:
                table[entry["name"], problem].append((entry, target))
    for (name, problem), where in sorted(table.items(), key=lambda item: item[0]):
        on = ", ".join(sorted({target for _, target in where}))
        print(f"{name}: {problem}\n    {len(where)}x on {on}, e.g. {_describe(where[0][0])}")
    listed = sum(entry["listed"] for entry in entries)
    compiled = sum(len(targets(entry, options.every)) for entry in entries)
    seconds = time.perf_counter() - start
    print(
        f"{len(entries)} specialisations ({listed} listed), compiled {compiled} times for "
        f"{len(TARGETS)} targets in {seconds:.0f} s: {len(table) or 'no'} findings"
    )
    if not entries:
        print(
            "an empty manifest checks nothing: "
            "run the tests with TRITON_INTERPRET=1 and LIGER_LAUNCHES set"
        )
    return 1 if table or not entries else 0


def _describe(entry: Entry) -> str:
    types = sorted({t for t in entry["signature"].values() if t.startswith("*")})
    shown = {k: v for k, v in entry["constants"].items() if v is not None}
    return f"{' '.join(types)} {shown} {entry['options']}"


if __name__ == "__main__":
    sys.exit(main())
