"""The compile check finds planted faults, and does not pass what it could not look at."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from liger_core.testing import compile_check, layouts, ttir
from liger_core.testing.interpreter import interpreting

pytest.importorskip("triton")
pytestmark = pytest.mark.skipif(interpreting(), reason="an interpreted kernel cannot be compiled")

KERNELS = Path(__file__).with_name("planted_kernels.py")
ROW = {"X": "*bf16", "Y": "*bf16", "stride": "i32", "N": "i32", "BLOCK": "constexpr"}
MATMUL = {"A": "*bf16", "B": "*bf16", "C": "*fp32", "N": "i32", "K": "i32"} | dict.fromkeys(
    ("TWICE", "BLOCK", "BLOCK_K"), "constexpr"
)


def entry(name, signature=ROW, listed=False, warps=4, stages=3, **constants):
    """A line of a manifest."""
    aligned = [k for k, t in signature.items() if t != "constexpr"]
    return {
        "module": "planted_kernels",
        "name": name,
        "file": str(KERNELS),
        "signature": signature,
        "constants": constants,
        "aligned": aligned,
        "small": aligned[:1],
        "ones": [],
        "listed": listed,
        "options": {"num_warps": warps, "num_stages": stages},
    }


PRODUCT = "int32 product reaches an address"
SUM = {"X": "*bf16", "Y": "*fp32", "N": "i32", "BLOCK": "constexpr"}
SMALL = {"TWICE": False, "BLOCK": 64, "BLOCK_K": 64}
BIG = {"TWICE": False, "BLOCK": 256, "BLOCK_K": 32}


@pytest.mark.parametrize(
    ("planted", "target", "finding"),
    [
        (entry("clean", listed=True, BLOCK=4096), "sm_90", None),
        (entry("clean", listed=True, BLOCK=4096), "gfx942", None),
        (entry("clean", BLOCK=65536), "sm_80", None),
        (entry("clean", listed=True, BLOCK=65536), "sm_90", "spills"),
        (entry("matmul", MATMUL, listed=True, warps=2, stages=1, **BIG), "gfx942", "spills"),
        (entry("clean", listed=True, warps=32, BLOCK=4096), "gfx942", None),
        (entry("int32_address", BLOCK=1024), "sm_100", PRODUCT),
        (entry("int32_carried", BLOCK=1024), "sm_90", PRODUCT),
        (entry("float_atomic", SUM, BLOCK=64), "sm_90", "float atomic"),
        (entry("matmul", MATMUL, warps=8, stages=8, **BIG), "sm_90", "shared memory 262144"),
        (entry("matmul", MATMUL, **(SMALL | {"TWICE": True})), "sm_80", "chained dots"),
        (entry("matmul", MATMUL, **SMALL), "sm_80", None),
        (entry("clean", BLOCK=100), "sm_90", "power of 2"),
        (entry("missing", BLOCK=128), "sm_90", "AttributeError"),
        (entry("clean", ROW | {"X": "unsupported list"}, BLOCK=128), "sm_90", "unsupported list"),
        (entry("clean", BLOCK={"unsupported": "object()"}), "sm_90", "object()"),
    ],
    ids=lambda value: value["name"] if isinstance(value, dict) else None,
)
def test_finding(planted, target, finding):
    found = compile_check.check(planted, target)
    assert not found if finding is None else finding in " ".join(found)


def test_command_line(tmp_path):
    """One process, two kernels: findings in a table, a summary line, exit code 1."""
    manifest = tmp_path / "launches.json"
    listed = entry("int32_address", BLOCK=64) | {"listed": True}
    manifest.write_text(json.dumps([entry("clean", BLOCK=64), listed]))
    result = run(manifest)
    assert result.returncode == 1
    assert "int32_address: int32 product reaches an address" in result.stdout
    assert "4x on gfx942, sm_100, sm_80, sm_90" in result.stdout
    assert result.stdout.splitlines()[-1].startswith(
        "2 specialisations (1 listed), compiled 5 times"
    )


def test_nothing_to_look_at_is_a_failure(tmp_path):
    manifest = tmp_path / "launches.json"
    manifest.write_text("[]")
    assert run(manifest).returncode == 1
    assert run(tmp_path / "none.json").returncode == 2
    assert run(manifest, TRITON_INTERPRET="1").returncode == 2
    with pytest.raises(ValueError, match="no Triton IR"):
        ttir.findings("")
    with pytest.raises(ValueError, match="no Triton GPU IR"):
        layouts.crowded("")


CROWDED = """
#blocked = #ttg.blocked<{sizePerThread = [1, 1], threadsPerWarp = [32, 1], warpsPerCTA = [4, 1], order = [0, 1]}>
#blocked1 = #ttg.blocked<{sizePerThread = [1, 8], threadsPerWarp = [1, 32], warpsPerCTA = [1, 4], order = [1, 0]}>
module attributes {"ttg.num-ctas" = 1 : i32, "ttg.num-warps" = 4 : i32} {
    %1 = tt.broadcast %0 : tensor<1x1xf32, #blocked> -> tensor<1x4096xf32, #blocked> loc(#loc1)
    %2 = ttg.convert_layout %1 : tensor<1x4096xf32, #blocked> -> tensor<1x4096xf32, #blocked1> loc(#loc2)
    %3 = tt.load %p : tensor<1x4096x!tt.ptr<bf16>, #blocked1> loc(#loc3)
"""  # noqa: E501


def test_tile_that_each_thread_has():
    assert layouts.crowded(CROWDED) == ["a thread holds 4096 elements of a tensor of 1x4096"]
    # 128 rows for 128 threads: each has its share
    assert not layouts.crowded(CROWDED.replace("tensor<1x", "tensor<128x"))


def test_spills_that_are_allowed():
    spilling = entry("clean", listed=True, BLOCK=65536)
    assert not compile_check.check(spilling, "sm_90", spilled=10**6)


def test_targets():
    """Each gets its share of what is compiled for one, and all get the benchmarks' shapes."""
    entries = [entry("clean", BLOCK=2**n) for n in range(40)]
    chosen = [compile_check.targets(e) for e in entries]
    assert {len(names) for names in chosen} == {1}
    every = compile_check.targets(entries[0], every=True)
    assert {name for (name,) in chosen} == set(every)
    assert compile_check.targets(entry("clean", listed=True, BLOCK=1)) == every


def run(manifest, **env):
    command = [sys.executable, "-m", "liger_core.testing.compile_check", str(manifest)]
    return subprocess.run(
        command, env=os.environ | env, capture_output=True, text=True, check=False
    )


def test_entries_that_differ_in_values_only():
    """The least specialised one and whatever is listed are compiled."""
    entries = [
        entry("clean", BLOCK=64) | {"aligned": list(ROW)[:n], "listed": n == 2} for n in range(4)
    ]
    assert [len(e["aligned"]) for e in compile_check.select(entries)] == [0, 2]
    one = entry("clean", ROW | {"N": "constexpr"}, BLOCK=64, N=1) | {"ones": ["N"]}
    assert len(compile_check.select([*entries, one, one])) == 2
    assert len(compile_check.select([*entries, entry("clean", BLOCK=128)])) == 3
