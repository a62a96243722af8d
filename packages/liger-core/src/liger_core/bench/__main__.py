"""Command line: `python -m liger_core.bench run norms`, `python -m liger_core.bench tables`."""

import argparse
import json
import subprocess
import sys
from pathlib import Path

import torch

from .rows import load_family
from .run import run_family
from .tables import compact, write_tables


def main(argv: list[str] | None = None) -> int:
    """Parse, run, and print one clear line with exit code 2 for input that cannot be used."""
    arguments = _parser().parse_args(argv)
    try:
        return _tables(arguments) if arguments.command == "tables" else _run(arguments)
    except (FileNotFoundError, ValueError) as error:
        print(f"bench: {error}", file=sys.stderr)
        return 2


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m liger_core.bench", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser(
        "run", help="measure families of ops; several families run in processes of their own"
    )
    run.add_argument(
        "families",
        nargs="*",
        help="norms, activations, ... (default: all that have benchmarks/bench.py)",
    )
    run.add_argument("--root", type=Path, default=Path.cwd(), help="root of the repository")
    run.add_argument("--out", type=Path, help="folder of the results (default: benchmarks/results)")
    run.add_argument(
        "--only", default="", help="rows whose title, shape or note contains this text"
    )
    run.add_argument(
        "--peers", help="comma-separated implementations, e.g. ours,eager,compile (default: all)"
    )
    run.add_argument(
        "--limit", type=int, default=90, help="seconds for one implementation of one row"
    )
    run.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    run.add_argument("--small", action="store_true", help="small shapes, for a CPU")
    run.add_argument("--commit", help="recorded commit (default: git rev-parse HEAD)")
    tables = commands.add_parser(
        "tables", help="write the README's table and docs/benchmarks.md from the results"
    )
    tables.add_argument("--results", type=Path, default=Path("benchmarks/results"))
    tables.add_argument("--readme", type=Path, default=Path("README.md"))
    tables.add_argument("--docs", type=Path, default=Path("docs/benchmarks.md"))
    tables.add_argument(
        "--check",
        action="store_true",
        help="change nothing; exit code 1 if something is out of date",
    )
    return parser


def _run(arguments: argparse.Namespace) -> int:
    out = arguments.out or arguments.root / "benchmarks" / "results"
    families = [name.removeprefix("liger-") for name in arguments.families] or _families(
        arguments.root
    )
    if not families:
        raise ValueError(f"no packages/liger-*/benchmarks/bench.py under {arguments.root}")
    if len(families) > 1:
        return _run_each(families, out, arguments)
    path = run_family(
        families[0],
        load_family(arguments.root, families[0]),
        out,
        device=torch.device(arguments.device),
        commit=arguments.commit,
        only=arguments.only,
        peers=arguments.peers.split(",") if arguments.peers else (),
        limit=arguments.limit,
        small=arguments.small,
    )
    print(f"\n{compact([json.loads(path.read_text())])}\n{path}")
    return 0


def _run_each(families: list[str], out: Path, arguments: argparse.Namespace) -> int:
    """A process per family, so that a kernel that breaks the context takes down one of them."""
    options = ["--root", arguments.root, "--out", out, "--only", arguments.only]
    options += ["--peers", arguments.peers] if arguments.peers else []
    options += ["--limit", arguments.limit, "--device", arguments.device]
    options += ["--small"] if arguments.small else []
    options += ["--commit", arguments.commit] if arguments.commit else []
    command = [sys.executable, "-m", "liger_core.bench", "run"]
    return max(
        subprocess.run([*command, family, *map(str, options)], check=False).returncode
        for family in families
    )


def _families(root: Path) -> list[str]:
    found = sorted(root.glob("packages/liger-*/benchmarks/bench.py"))
    return [path.parts[-3].removeprefix("liger-") for path in found]


def _tables(arguments: argparse.Namespace) -> int:
    stale = write_tables(arguments.results, arguments.readme, arguments.docs, arguments.check)
    for path in stale:
        print(f"{path} {'is out of date' if arguments.check else 'written'}")
    return 1 if arguments.check and stale else 0


if __name__ == "__main__":
    sys.exit(main())
