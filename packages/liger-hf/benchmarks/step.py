"""A training step of transformers models: plain, compiled and patched.

bf16 weights, gradients and AdamW states, 4 x 2048 random tokens, the same for each variant; every
variant of a model runs in a process of its own. `compile` compiles the whole model,
`compile-regions` each of its layers. While a whole model is traced, transformers cannot see that no
sequences are packed (`find_packed_sequence_indices` would look at values), so it builds an explicit
mask, with which SDPA does not take its causal flash kernel; with compiled regions the mask is left
to eager code, which passes none.

    python step.py                                        # every model
    python step.py --model llama --variants eager,ours
    python step.py --context                              # the longest sequence that fits

Results go to `<out>/<gpu>-step.json`. Those of earlier runs in the same environment stay there.
"""

import argparse
import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from liger_core.bench.clocks import device_times, peak_mib, summary
from liger_core.bench.machine import environment, slug
from step_context import CONTEXTS, measure_context
from step_models import MODELS, VARIANTS, build, compiled, inputs, load

FIRST_STEPS = 5
BATCH, LENGTH = 4, 2048
SMALL_BATCH, SMALL_LENGTH = 2, 32
# processes that import while another one runs
AHEAD = 2
# what tells two measurements apart
KEY = ("model", "name", "checkpointing")


def main(argv: list[str] | None = None) -> int:
    arguments = _parse(argv)
    if arguments.run:
        load(arguments.models[0], arguments.run)
        # with all imported: the device is not touched before our turn
        print(json.dumps(_run(arguments, sys.stdin.readline())))
        return 0
    device = _device()
    arguments.out.mkdir(parents=True, exist_ok=True)
    path = arguments.out / f"{slug(device)}-step.json"
    document = _document(path, environment(device, ["liger-kernel"], arguments.commit))
    for kind, result in _contexts(arguments) if arguments.context else _steps(arguments):
        _put(document, kind, result)
        path.write_text(json.dumps(document, indent=1) + "\n")
        print(_text(result), flush=True)
    print(path)
    return 0


def run_variant(model_name: str, variant: str, small: bool) -> dict[str, Any]:
    """Train a few steps on fixed random tokens, then time the following ones."""
    device = _device()
    batch, length = (SMALL_BATCH, SMALL_LENGTH) if small else (BATCH, LENGTH)
    model, report = build(model_name, variant, small, device)
    run = compiled(model, variant)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    torch.manual_seed(0)
    given = inputs(model_name, model, batch, length, small)
    losses: list[torch.Tensor] = []

    def step() -> None:
        loss = run(**given).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.detach())

    for _ in range(FIRST_STEPS):
        step()
    # absolute, and before the clock allocates its buffer
    resident = torch.cuda.memory_allocated() / 2**20 if device.type == "cuda" else 0.0
    above = peak_mib(step, device)
    times = summary(device_times(step, device))
    return {
        "ms": times,
        "tokens_s": batch * length / times["median"] * 1e3,
        "peak_gib": None if above is None else (resident + above) / 1024,
        "losses": [round(float(loss), 5) for loss in losses[:FIRST_STEPS]],
        "report": report,
    }


def _parse(argv: list[str] | None) -> argparse.Namespace:
    summary, _, rest = (__doc__ or "").partition("\n")
    parser = argparse.ArgumentParser(
        description=summary, epilog=rest, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--models", "--model", default=",".join(MODELS), help="comma-separated")
    add("--variants", help="comma-separated (default: those that a model lists)")
    add("--context", action="store_true", help="measure context lengths of the first model instead")
    add("--context-seconds", type=float, default=110.0, help="that may be tried for, in all")
    add("--out", type=Path, default=Path("benchmarks/results"))
    add("--commit", help="recorded commit (default: git rev-parse HEAD)")
    add("--small", action="store_true", help="tiny models, for a CPU")
    add("--limit", type=int, default=240, help="seconds for one process")
    # a process of one variant
    add("--run", help=argparse.SUPPRESS)
    add("--checkpointing", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args(argv)
    arguments.models = arguments.models.split(",")
    arguments.variants = arguments.variants.split(",") if arguments.variants else None
    for option, known in (("models", MODELS), ("variants", VARIANTS)):
        if unknown := set(getattr(arguments, option) or ()) - set(known):
            names = ", ".join(sorted(unknown))
            parser.error(f"unknown {option} {names}; there are {', '.join(known)}")
    return arguments


def _run(arguments: argparse.Namespace, line: str) -> dict[str, Any]:
    name, variant, small = arguments.models[0], arguments.run, arguments.small
    if arguments.context:
        return measure_context(name, variant, arguments.checkpointing, float(line), small)
    return run_variant(name, variant, small)


def _steps(arguments: argparse.Namespace) -> Iterator[tuple[str, dict[str, Any]]]:
    names = [(m, v) for m in arguments.models for v in arguments.variants or MODELS[m].variants]
    batch, length = (SMALL_BATCH, SMALL_LENGTH) if arguments.small else (BATCH, LENGTH)
    commands = [["--model", model, "--run", variant] for model, variant in names]
    for (model, variant), result in zip(names, _in_turn(commands, arguments), strict=True):
        title = f"{MODELS[model].title}, {batch} x {length} tokens"
        yield "step", {"model": model, "title": title, "name": variant, **result}


def _contexts(arguments: argparse.Namespace) -> Iterator[tuple[str, dict[str, Any]]]:
    model, left = arguments.models[0], arguments.context_seconds
    wanted = [c for c in CONTEXTS if c[0] in (arguments.variants or VARIANTS)]
    commands = [
        ["--model", model, "--context", "--run", variant, *["--checkpointing"] * checkpointing]
        for variant, checkpointing in wanted
    ]
    results = _in_turn(commands, arguments, lambda turn: str(left / (len(wanted) - turn)))
    for (variant, checkpointing), result in zip(wanted, results, strict=True):
        left -= result.get("seconds", 0.0)
        entry = {"model": model, "title": MODELS[model].title, "name": variant}
        yield "context", {**entry, "checkpointing": checkpointing, **result}


def _in_turn(
    commands: list[list[str]],
    arguments: argparse.Namespace,
    line: Callable[[int], str] = lambda turn: "",
) -> Iterator[dict[str, Any]]:
    """Results of this script with each command, one at a time.

    The next ones import meanwhile. `line` is what a process reads when its turn comes.
    """
    options = ["--small"] if arguments.small else []
    waiting: list[subprocess.Popen[str]] = []
    try:
        for turn in range(len(commands)):
            for command in commands[turn + len(waiting) : turn + 1 + AHEAD]:
                waiting.append(_start([*command, *options]))
            yield _result(waiting[0], f"{line(turn)}\n", arguments.limit)
            waiting.pop(0)
    finally:
        for process in waiting:
            _kill(process)


def _start(command: list[str]) -> subprocess.Popen[str]:
    pipe = subprocess.PIPE
    command = [sys.executable, __file__, *command]
    # without gaps, the longest sequence is a matter of memory alone
    more = {"PYTORCH_ALLOC_CONF": "expandable_segments:True"} if "--context" in command else {}
    return subprocess.Popen(
        command, stdin=pipe, stdout=pipe, stderr=pipe, text=True, env=os.environ | more,
        start_new_session=True,
    )  # fmt: skip


def _kill(process: subprocess.Popen[str]) -> None:
    """With the compilers that it has started, which hold its pipes open."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.communicate()


def _result(process: subprocess.Popen[str], line: str, limit: int) -> dict[str, Any]:
    try:
        out, err = process.communicate(line, timeout=limit)
    except subprocess.TimeoutExpired:
        _kill(process)
        return {"failed": f"stopped after {limit} s"}
    if process.returncode:
        lines = err.strip().split("\n")
        print("\n".join(lines[-12:]), file=sys.stderr)
        return {"failed": lines[-1][:300] or f"exit code {process.returncode}"}
    return json.loads(out.strip().split("\n")[-1])


def _document(path: Path, now: dict[str, Any]) -> dict[str, Any]:
    """With the results of earlier runs that differ in nothing but the day."""
    document = {"family": "step", "environment": now, "ceilings": {}, "rows": []}
    if path.exists():
        before = json.loads(path.read_text())
        if before["environment"] | {"date": now["date"]} == now:
            return before | document
    return document


def _put(document: dict[str, Any], kind: str, result: dict[str, Any]) -> None:
    """In place of the same measurement of an earlier run, in the order of models and variants."""
    key = [result.get(field) for field in KEY]
    others = [r for r in document.get(kind, []) if [r.get(field) for field in KEY] != key]
    order = (list(MODELS), list(VARIANTS))
    document[kind] = sorted(
        [*others, result],
        key=lambda r: (
            order[0].index(r["model"]), order[1].index(r["name"]), r.get("checkpointing")
        ),
    )  # fmt: skip


def _device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def _text(result: dict[str, Any]) -> str:
    """One measurement as a line."""
    name = f"{result['model']:<10} {result['name']:<20}"
    if "failed" in result:
        return f"{name} {result['failed']}"
    if "tokens" in result:
        how = "checkpointed" if result["checkpointing"] else ""
        bound = result["too_long"] or "no limit found"
        return f"{name} {how:<12} {result['tokens']:>8,} tokens fit, too long: {bound}"
    peak = "-" if result["peak_gib"] is None else f"{result['peak_gib']:.2f} GiB"
    losses = " ".join(f"{loss:.4f}" for loss in result["losses"])
    speed = f"{result['ms']['median']:8.1f} ms {result['tokens_s']:10,.0f} tokens/s"
    return f"{name} {speed} {peak:>10}  losses {losses}"


if __name__ == "__main__":
    sys.exit(main())
