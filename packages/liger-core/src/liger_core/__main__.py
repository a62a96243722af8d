"""Command line: `liger env` and `liger vendor <op> <folder>`, also as `python -m liger_core`."""

import argparse
import json
import sys
from collections.abc import Sequence

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; returns its exit code, 2 for bad input."""
    options = _parser().parse_args(arguments)
    return _env(options) if options.command == "env" else _vendor(options)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="liger", description="The Liger kernel packages on this machine."
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="command")
    env = commands.add_parser(
        "env",
        help="report versions, devices and the path that each op takes here",
        description="Report versions, devices, and whether each op runs its kernel here, and why.",
    )
    env.add_argument("--json", action="store_true", help="as JSON")
    vendor = commands.add_parser(
        "vendor",
        help="copy one op into your code, as one file",
        description="Write an op, and what it uses of other Liger files, as one file that needs "
        "only torch and triton. Its first lines name origin, version and licence.",
    )
    vendor.add_argument("op", help="a public name of an installed kernel package, e.g. rms_norm")
    vendor.add_argument("folder", help="where to write it; made if it does not exist")
    vendor.add_argument("--force", action="store_true", help="overwrite an existing file")
    return parser


def _env(options: argparse.Namespace) -> int:
    from .env import environment, render

    report = environment()
    print(json.dumps(report, indent=2) if options.json else render(report))
    return 0


def _vendor(options: argparse.Namespace) -> int:
    from .vendor import VendorError, write

    try:
        path = write(options.op, options.folder, force=options.force)
    except VendorError as error:
        print(f"liger vendor: {error}", file=sys.stderr)
        return 2
    print(f"wrote {path}, which defines {options.op}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
