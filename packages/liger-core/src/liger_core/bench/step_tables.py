"""Tables of whole models: a training step by variant, the longest sequence that fits."""

from typing import Any

__all__ = ["context_tables", "step_tables"]

Record = dict[str, Any]


def step_tables(document: Record) -> list[str]:
    """One training step, a table per model; peak: GiB allocated at the most."""
    return [_step_table(results) for results in _by_model(document.get("step", []))]


def context_tables(document: Record) -> list[str]:
    """The longest sequence, without and with gradient checkpointing, a table per model."""
    return [_context_table(results) for results in _by_model(document.get("context", []))]


def _by_model(results: list[Record]) -> list[list[Record]]:
    models: dict[str, list[Record]] = {}
    for result in results:
        models.setdefault(result["model"], []).append(result)
    return list(models.values())


def _step_table(results: list[Record]) -> str:
    lines = [
        f"| {results[0]['title']} | ms | tokens/s | peak GiB | first losses |",
        "|---|---|---|---|---|",
    ]
    for result in results:
        if "failed" in result:
            lines.append(f"| {result['name']} | {_failed(result)} | | | |")
            continue
        peak = "" if result["peak_gib"] is None else f"{result['peak_gib']:.1f}"
        losses = ", ".join(f"{loss:.3f}" for loss in result["losses"][:3])
        cells = (f"{result['ms']['median']:.1f}", f"{result['tokens_s']:,.0f}", peak, losses)
        lines.append(f"| {result['name']} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _context_table(results: list[Record]) -> str:
    lines = [
        f"| {results[0]['title']}, longest sequence that trains | tokens | checkpointed |",
        "|---|---|---|",
    ]
    for name in dict.fromkeys(result["name"] for result in results):
        own = {result["checkpointing"]: result for result in results if result["name"] == name}
        cells = [_length(own[how]) if how in own else "" for how in (False, True)]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _length(result: Record) -> str:
    if "failed" in result:
        return _failed(result)
    # without a failure nothing longer was tried; far from one, time was up
    text, bound = f"{result['tokens']:,}", result["too_long"]
    if not bound:
        return f"{text} or more"
    return text if bound - result["tokens"] <= result["resolution"] else f"{text}, under {bound:,}"


def _failed(result: Record) -> str:
    return str(result["failed"]).replace("|", "/")
