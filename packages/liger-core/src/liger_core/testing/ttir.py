"""Findings in a kernel's Triton IR: int32 products in addresses, chained dots, float atomics.

The IR is read as text: values are resolved through nested regions, loop-carried variables and the
results of `scf.for` and `scf.if`.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field

__all__ = ["findings"]

_RESULT = re.compile(r"^(%[\w$.#-]+)(?::(\d+))? = (.*)$")
_VALUE = re.compile(r"%[\w$.-]+(?:#\d+)?")
_INT32 = re.compile(r": (?:i32|tensor<[\dx]*xi32>)$")
# loc(#loc1), loc("x"(#loc)), loc(callsite(#loc1 at #loc2))
_LOCATION = re.compile(r"\s*loc\((?:[^()]|\((?:[^()]|\([^()]*\))*\))*\)")
# values that stay small or fixed, whatever the tensors
_CONSTANT = {"arith.constant", "tt.make_range"}
_RESHAPES = {
    "tt.splat",
    "tt.broadcast",
    "tt.expand_dims",
    "tt.reshape",
    "tt.trans",
    "ttg.convert_layout",
    "arith.extsi",
}


@dataclass(eq=False)
class Value:
    """An SSA value: the operation that made it and what it was made from."""

    op: str
    operands: list["Value"] = field(default_factory=list)
    line: str = ""


@dataclass
class Region:
    """Names visible inside braces, and where the operands of its yield go."""

    names: dict[str, Value]
    yields: list[Value]


def findings(ttir: str) -> list[str]:
    """What is wrong with a kernel on every target, one phrase each.

    Raises:
        ValueError: the text holds no operation; a check that cannot look must not pass.
    """
    values, addresses = _parse(ttir)
    if not values:
        raise ValueError("no Triton IR to look at")
    bad: dict[int, Value] = {}
    seen: set[int] = set()
    for offset in addresses:
        for value in _reaching(offset, seen):
            if (
                value.op == "arith.muli"
                and _INT32.search(value.line)
                and not any(map(_is_constant, value.operands))
            ):
                bad[id(value)] = value
    found = [f"int32 product reaches an address ({_names(bad)})"] if bad else []
    dots = [
        v
        for v in values
        if v.op == "tt.dot" and len(v.operands) > 2 and v.operands[2].op == "tt.dot"
    ]
    if dots:
        found.append("chained dots: wrong results on datacenter Blackwell with Triton 3.6 and 3.7")
    if any(
        v.op == "tt.atomic_rmw" and re.search(r"atomic_rmw f(add|max|min)", v.line) for v in values
    ):
        found.append("float atomic: not deterministic")
    return found


def _names(values: dict[int, Value]) -> str:
    names = {
        v.line.split(" = ")[0].lstrip("%").rstrip("0123456789").rstrip("_") or "?"
        for v in values.values()
    }
    return ", ".join(sorted(names))


def _reaching(value: Value, seen: set[int]) -> Iterator[Value]:
    """What an address is computed from, up to loads: theirs are addresses of their own."""
    stack = [value]
    while stack:
        value = stack.pop()
        if id(value) in seen or value.op == "tt.load":
            continue
        seen.add(id(value))
        yield value
        stack += value.operands[1:] if value.op == "arith.select" else value.operands


def _is_constant(value: Value) -> bool:
    if value.op in _CONSTANT:
        return True
    return value.op in _RESHAPES and all(map(_is_constant, value.operands))


def _parse(ttir: str) -> tuple[list[Value], list[Value]]:
    """All values, and those that are offsets of an address."""
    values: list[Value] = []
    addresses: list[Value] = []
    stack = [Region({}, [])]
    for line in (_LOCATION.sub("", text).strip() for text in ttir.splitlines()):
        if line.startswith("#"):
            continue
        opens = line.endswith("{")
        if line.startswith("}") and len(stack) > 1:
            region = stack.pop()
            if opens:
                # "} else {", "} do {": the same results, new names
                stack.append(Region(dict(stack[-1].names), region.yields))
            continue
        names = stack[-1].names
        match = _RESULT.match(line)
        body = match[3] if match else line
        op = re.match(r'"?([\w.]+)', body)
        kind = op[1] if op else ""
        if line.startswith(("^bb", "tt.func")):
            names.update({name: Value("argument") for name in _VALUE.findall(line)})
        operands = [names[name] for name in _VALUE.findall(body) if name in names]
        results = (
            _define(match[1], int(match[2] or 1), kind, operands, line, names) if match else []
        )
        values += results
        if kind == "tt.addptr":
            addresses.append(operands[1])
        if kind in ("scf.yield", "scf.condition"):
            for target, operand in zip(
                stack[-1].yields, operands[-len(stack[-1].yields) :], strict=False
            ):
                target.operands.append(operand)
        if opens:
            stack.append(_enter(body, names, results))
    return values, addresses


def _define(
    name: str, count: int, op: str, operands: list[Value], line: str, names: dict[str, Value]
) -> list[Value]:
    results = [Value(op, list(operands), line) for _ in range(count)]
    names[name] = results[0]
    names.update({f"{name}#{i}": value for i, value in enumerate(results)})
    return results


def _enter(code: str, names: dict[str, Value], results: list[Value]) -> Region:
    """The region that an operation opens.

    A loop variable comes from its first value and from what the body yields.
    """
    inner = dict(names)
    carried = []
    head, _, variables = code.partition("iter_args")
    if head.startswith("scf.while"):
        head, _, variables = head.partition("(")
    for name, first in re.findall(r"(%[\w$.-]+) = (%[\w$.#-]+)", variables):
        inner[name] = Value("carried", [names[first]] if first in names else [])
        carried.append(inner[name])
    induction = re.match(r"scf\.for (?:unsigned )?(%[\w$.-]+) =", code)
    if induction:
        inner[induction[1]] = Value("induction")
    for variable, result in zip(carried, results, strict=False):
        result.operands.append(variable)
    # what the body yields goes to the carried variables, or else, from an scf.if, to the results
    return Region(inner, carried or results)
