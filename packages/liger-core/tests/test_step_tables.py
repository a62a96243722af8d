"""Tables of whole models, from results as benchmarks/step.py of liger-hf writes them."""

from liger_core.bench.step_tables import context_tables, step_tables
from liger_core.bench.tables import report


def step(model, name, **result):
    found = {
        "ms": {"median": 124.51, "p10": 123.0, "p90": 129.0, "runs": 10},
        "tokens_s": 65803.0,
        "peak_gib": 16.65,
        "losses": [12.5646, 4.2148, 0.1567, 0.1],
    }
    return {"model": model, "title": f"{model}, 4 x 2", "name": name, **(result or found)}


def context(name, checkpointing, tokens, too_long):
    found = {"tokens": tokens, "too_long": too_long, "resolution": 2048, "seconds": 9.0}
    return {"model": "a", "title": "a", "name": name, "checkpointing": checkpointing, **found}


DOCUMENT = {
    "family": "step",
    "environment": {
        "device": "X1", "driver": "1", "versions": {}, "date": "2030-01-01", "commit": "c0ffee",
    },
    "ceilings": {},
    "rows": [],
    "step": [step("a", "eager"), step("b", "eager"), step("a", "ours", failed="E: x | y")],
    "context": [
        context("eager", False, 8192, 10240),
        context("ours", False, 16384, 32768),
        context("ours", True, 262144, None),
    ],
}  # fmt: skip


def test_a_table_per_model():
    first, second = step_tables(DOCUMENT)
    assert first.split("\n") == [
        "| a, 4 x 2 | ms | tokens/s | peak GiB | first losses |",
        "|---|---|---|---|---|",
        "| eager | 124.5 | 65,803 | 16.6 | 12.565, 4.215, 0.157 |",
        "| ours | E: x / y | | | |",
    ]
    assert second.startswith("| b, 4 x 2 |")


def test_context_says_what_was_found():
    (table,) = context_tables(DOCUMENT)
    assert table.split("\n")[2:] == [
        "| eager | 8,192 |  |",
        "| ours | 16,384, under 32,768 | 262,144 or more |",
    ]


def test_report_holds_them():
    text = report([DOCUMENT])
    for table in step_tables(DOCUMENT) + context_tables(DOCUMENT):
        assert table in text
