"""The result of `apply` and `report`: one row for each layer that was looked at."""

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass

__all__ = ["Report", "Row"]


@dataclass(frozen=True)
class Row:
    """One layer: `form` is what it computes, `op` what does it now, `reason` why it was left,
    `part` the keyword of `apply` that it falls under, `numbers` what was measured.
    """

    path: str
    kind: str
    form: str = ""
    op: str = ""
    reason: str = ""
    part: str = ""
    numbers: str = ""


class Report:
    """Rows for every layer that was recognised or nearly so; `print` shows them grouped by path.

    Attributes:
        rows: all of them, in the order of `model.named_modules()`.
        patched: rows with an op.
        refused: rows without, each with its `reason`.
    """

    def __init__(self, rows: Iterable[Row]):
        self.rows = list(rows)

    @property
    def patched(self) -> list[Row]:
        return [row for row in self.rows if row.op]

    @property
    def refused(self) -> list[Row]:
        return [row for row in self.rows if not row.op]

    def __str__(self) -> str:
        return self._table(("form", "op"), lambda row: (row.form, _outcome(row)))

    def explain(self) -> str:
        """The table with the numbers: how far a layer lies from its form, or from the next ones."""
        return self._table(
            ("form", "measured", "op"), lambda row: (row.form, row.numbers, _outcome(row))
        )

    def _table(self, titles: tuple[str, ...], cells: Callable[[Row], tuple[str, ...]]) -> str:
        groups: dict[tuple[str, ...], list[str]] = {}
        for row in self.rows:
            key = (re.sub(r"\d+", "#", row.path), row.kind, *cells(row))
            groups.setdefault(key, []).append(row.path)
        lines = [("module", "class", *titles)]
        lines += [(_pattern(paths), *key[1:]) for key, paths in groups.items()]
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        table = [
            "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
            for line in lines
        ]
        return "\n".join([*table, f"{len(self.patched)} patched, {len(self.refused)} not patched"])

    __repr__ = __str__


def _outcome(row: Row) -> str:
    return row.op or f"not patched: {row.reason}"


def _pattern(paths: list[str]) -> str:
    """model.layers.0.mlp, model.layers.1.mlp -> model.layers.[0-1].mlp"""
    parts = [re.split(r"(\d+)", path) for path in paths]
    columns = [sorted({int(part[i]) for part in parts}) for i in range(1, len(parts[0]), 2)]
    text = list(parts[0])
    for i, numbers in enumerate(columns):
        text[2 * i + 1] = _ranges(numbers)
    return "".join(text)


def _ranges(numbers: list[int]) -> str:
    if len(numbers) == 1:
        return str(numbers[0])
    runs: list[list[int]] = []
    for n in numbers:
        if runs and n == runs[-1][-1] + 1:
            runs[-1].append(n)
        else:
            runs.append([n])
    return f"[{','.join(str(run[0]) if len(run) == 1 else f'{run[0]}-{run[-1]}' for run in runs)}]"
