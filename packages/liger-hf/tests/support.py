"""Which decoders of the installed transformers are patched: `python support.py` writes it down.

Every type is built tiny (`zoo`) and reported on. `support.json` holds what was found,
docs/support.md and a line of the root README show it.
"""

import json
import re
import sys
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

import liger_hf
import transformers
import zoo

HERE = Path(__file__).parent
STORED, ROOT = HERE / "support.json", HERE.parents[2]
PARTS = ("norms", "mlp", "moe", "rope", "loss")
# a layer of these needs no op: it has no gate, and one kernel in PyTorch as well
PLAIN = "one kernel in PyTorch too"

Found = dict[str, Any]


def inspect(kind: str, model_type: str) -> Found:
    """{part: {"forms": [..], "refused": {class: reason}}} of the decoder, or {"error": why}."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            model = zoo.tiny(kind, model_type)
        except Exception as error:
            return {"error": _without_numbers(f"{type(error).__name__}: {error}")}
        return summary(model)


def summary(model: Any) -> Found:
    inside = {id(module) for module in zoo.decoder(model).modules()}
    paths = {path for path, module in model.named_modules() if id(module) in inside}
    rows = [r for r in liger_hf.report(model).rows if r.part == "loss" or r.path in paths]
    found: Found = {}
    for part in PARTS:
        own = [row for row in rows if row.part == part]
        forms = sorted({row.form for row in own if row.op})
        refused = {row.kind: _without_numbers(row.reason) for row in own if not row.op}
        if own:
            found[part] = {"forms": forms, "refused": dict(sorted(refused.items()))}
    return found


def _without_numbers(text: str) -> str:
    """The beginning, without what was measured: that varies in its last digits."""
    line = " ".join(text.split())
    return re.sub(r"; closest is .*|, relative difference \S+", "", line)[:120].strip()


def state(found: Found, part: str) -> str:
    """yes, in part, no; none where there is no such layer, plain where it needs no op."""
    if part not in found:
        return "none"
    forms, refused = found[part]["forms"], set(found[part]["refused"].values())
    if refused <= {PLAIN}:
        return "yes" if forms else "plain"
    return "in part" if forms else "no"


def modern(found: Found) -> bool:
    """It has RMS norms, and gated units or experts."""
    norms, mlp = found.get("norms"), found.get("mlp", {"forms": []})
    named = [*norms["forms"], *norms["refused"]] if norms else []
    rms = any("rms_norm" in name or "RMSNorm" in name for name in named)
    return rms and ("moe" in found or any("glu" in form for form in mlp["forms"]))


def full(found: Found, parts: tuple[str, ...] = PARTS) -> bool:
    return all(state(found, part) in ("yes", "none", "plain") for part in parts)


def counts(found: dict[str, Found]) -> dict[str, int]:
    decoders = {name: f for name, f in found.items() if "error" not in f and modern(f)}
    return {
        "types": len(found),
        "built": sum("error" not in f for f in found.values()),
        "modern": len(decoders),
        "loss": sum(state(f, "loss") == "yes" for f in decoders.values()),
        "all": sum(full(f) for f in decoders.values()),
    }


def collect() -> dict[str, Any]:
    kinds: dict[str, dict[str, Found]] = {kind: {} for kind in zoo.MAPPINGS}
    for kind, model_type in zoo.types():
        kinds[kind][model_type] = inspect(kind, model_type)
        print(kind, model_type, file=sys.stderr)
    return {"transformers": transformers.__version__, "kinds": kinds}


def page(stored: dict[str, Any]) -> str:
    lines = [
        "# Supported models",
        "",
        f"What `liger_hf.apply` does to every decoder of transformers {stored['transformers']};",
        "`nox -s support` writes it. Layers are recognised by what they compute, so a model that",
        "is not listed has what its layers have. `yes`: all such layers are patched; `plain`: an",
        "activation without a gate, for which PyTorch has one kernel too; empty: no such layers.",
    ]
    for kind, found in stored["kinds"].items():
        lines += ["", f"## {kind}", "", sentence(kind, found), ""]
        lines += ["| type | " + " | ".join(PARTS) + " | why not |", "|---" * (len(PARTS) + 2) + "|"]
        for name, f in found.items():
            if "error" in f:
                lines.append(
                    f"| {name} |" + " |" * len(PARTS) + f" not built: {_cell(f['error'])} |"
                )
                continue
            states = [state(f, part).replace("none", "") for part in PARTS]
            reasons = [
                f"{owner or part}: {why}"
                for part in PARTS
                for owner, why in f.get(part, {"refused": {}})["refused"].items()
                if why != PLAIN
            ]
            lines.append(f"| {name} | {' | '.join(states)} | {_cell('; '.join(reasons))} |")
    return "\n".join(lines) + "\n"


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def sentence(kind: str, found: dict[str, Found]) -> str:
    c = counts(found)
    return (
        f"{c['types']} types, {c['built']} of which can be built here. {c['modern']} have RMS "
        f"norms and gated units or experts: of these, {c['all']} are patched in every part, "
        f"{c['loss']} in the head with its loss."
    )


def readme_line(stored: dict[str, Any]) -> str:
    """For the root README."""
    both = [(kind, counts(found)) for kind, found in stored["kinds"].items()]
    texts = [f"{c['all']} of {c['modern']} modern {kind} decoders" for kind, c in both]
    return (
        f"transformers {stored['transformers']}: norms, MLPs or experts, rotary embedding and loss "
        f"are all patched in {' and '.join(texts)}; [all types](docs/support.md).\n"
    )


def between(text: str, name: str, content: str) -> str:
    begin, end = f"<!-- {name}:begin -->\n", f"<!-- {name}:end -->"
    before, rest = text.split(begin)
    return before + begin + content + end + rest.split(end)[1]


def text(stored: dict[str, Any]) -> str:
    """As JSON, one line a type."""
    kinds = []
    for kind, found in stored["kinds"].items():
        types = [f" {json.dumps(n)}: {json.dumps(f, sort_keys=True)}" for n, f in found.items()]
        kinds.append(f"{json.dumps(kind)}: {{\n" + ",\n".join(types) + "\n}")
    version = json.dumps(stored["transformers"])
    return f'{{"transformers": {version}, "kinds": {{\n' + ",\n".join(kinds) + "\n}}\n"


def write(stored: dict[str, Any]) -> None:
    STORED.write_text(text(stored))
    (ROOT / "docs/support.md").write_text(page(stored))
    readme = ROOT / "README.md"
    readme.write_text(between(readme.read_text(), "support", readme_line(stored)))


if __name__ == "__main__":
    transformers.logging.set_verbosity_error()
    result = collect()
    write(result)
    for kind, found in result["kinds"].items():
        print(kind, Counter(counts(found)))
