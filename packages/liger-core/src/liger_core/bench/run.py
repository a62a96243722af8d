"""A family of ops: every row, ours first, then each peer; results as one JSON document."""

import importlib.metadata
import json
import math
import time
from collections.abc import Callable, Collection, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch

from ..testing.spec import Builder
from .machine import copy_bandwidth, environment, gemm_times, slug
from .measure import Case, deadline, first_line, make_case, measure
from .rows import OURS, Family, Peer, Row, compiled
from .tables import result_line

__all__ = ["run_family"]

_DTYPE = torch.bfloat16


def run_family(
    name: str,
    family: Family,
    out: Path,
    *,
    device: torch.device,
    commit: str | None = None,
    only: str = "",
    peers: Collection[str] = (),
    limit: int = 90,
    small: bool = False,
) -> Path:
    """Measure a family and write `<out>/<device>-<name>.json`, anew after each row.

    Args:
        name: of the family; `norms` for `liger-norms`.
        out: folder of the results.
        commit: recorded; by default asked from git.
        only: rows whose title, shape or note contains this.
        peers: names of the implementations to measure, `ours` among them; none: all.
        limit: seconds for one implementation of one row, compilation included.
        small: the rows' small shapes, for a CPU.
    """
    rows = [row for row in family.rows if only in f"{row.title} {shape_text(row.shape)} {row.note}"]
    distributions = {peer.package for group in family.peers.values() for peer in group}
    document: dict[str, Any] = {
        "family": name,
        "environment": environment(device, distributions, commit),
        "ceilings": _ceilings(family, device, small, rows),
        "rows": [],
    }
    out.mkdir(parents=True, exist_ok=True)
    path = out / f"{slug(device)}-{name}.json"
    for row in rows:
        document["rows"].append(_run_row(family, row, device, peers, limit, small))
        path.write_text(json.dumps(document, indent=1) + "\n")
    return path


def shape_text(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape))


def _ceilings(family: Family, device: torch.device, small: bool, rows: list[Row]) -> dict[str, Any]:
    ceilings: dict[str, Any] = {
        "copy_tb_s": copy_bandwidth(device, 2**22 if small else 2**30) / 1e12
    }
    # of tokens, or of sequences of tokens
    shapes = {(math.prod(row.shape[:-2]), *row.shape[-2:]) for row in rows}
    heads = [] if small else [head for head in family.heads if head in shapes]
    if heads:
        ceilings["gemm_ms"] = {shape_text(head): gemm_times(device, *head) for head in heads}
    return ceilings


def _run_row(
    family: Family,
    row: Row,
    device: torch.device,
    peers: Collection[str],
    limit: int,
    small: bool,
) -> dict[str, Any]:
    spec = family.specs[row.op]
    shape = row.small if small else row.shape
    print(f"\n{row.title} {shape_text(shape)} {row.note}", flush=True)
    record: dict[str, Any] = {
        "op": row.op,
        "title": row.title,
        "shape": list(shape),
        "note": row.note,
        "readme": row.readme,
        "files": spec.files,
        "bytes": _traffic(spec, row, shape),
        "flops": row.flops(*shape) if row.flops else None,
        "results": [],
    }
    try:
        inputs = (row.inputs or spec.inputs)(Builder(_DTYPE, device), shape)
        case = make_case(spec, row, inputs, device)
    # without its reference a row cannot be judged; the others can
    except Exception as error:
        record["results"].append({"name": "reference", "failed": first_line(error)})
        print(result_line(record, record["results"][-1]), flush=True)
        return record
    for peer in _implementations(spec, family, row):
        if not peers or peer.name in peers:
            start = time.perf_counter()
            result = _try(case, peer, row, limit)
            if result is not None:
                result["seconds"] = round(time.perf_counter() - start, 1)
                record["results"].append({"name": peer.name, "package": peer.package, **result})
                print(result_line(record, record["results"][-1]), flush=True)
    return record


def _implementations(spec: Any, family: Family, row: Row) -> Iterator[Peer]:
    ours = partial(spec.op, **row.options, **row.ours)
    call = _on_views(ours) if row.inplace else ours
    counted = (lambda **inputs: row.counted(call(**inputs))) if row.outputs else call
    yield Peer(OURS, lambda: counted, "liger-core", inplace=row.inplace)
    if row.alone:
        return
    listed = family.peers.get(row.title, ())
    eager = next((peer for peer in listed if peer.name == "eager"), None)
    eager = eager or Peer("eager", lambda: partial(spec.ref, **row.options))
    yield eager
    yield Peer("compile", partial(compiled, eager.load), prepare=eager.prepare, graph=eager.graph)
    yield from (peer for peer in listed if peer.name != "eager")


def _on_views(op: Callable[..., Any]) -> Callable[..., Any]:
    """An op may write what a model computed, but no leaf that requires a gradient."""
    return lambda **inputs: op(**{name: x.view_as(x) for name, x in inputs.items()})


def _try(case: Case, peer: Peer, row: Row, limit: int) -> dict[str, Any] | None:
    """Results of one implementation, its error as text, or None where it is not installed."""
    # asked of the distribution: another may have its import name
    if peer.name != OURS and _absent(peer.package):
        return None
    try:
        with deadline(limit):
            return measure(case, peer.load(), peer.prepare, peer.inplace, row.graph and peer.graph)
    # whatever a peer raises is its result: the run goes on
    except Exception as error:
        return {"failed": first_line(error)}


def _absent(package: str) -> bool:
    try:
        importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return True
    return False


def _traffic(spec: Any, row: Row, shape: tuple[int, ...]) -> int | None:
    if row.traffic is not None:
        return row.traffic(*shape)
    return None if spec.traffic is None or row.inputs else int(spec.traffic(shape, _DTYPE.itemsize))
