"""The generic suite on a right op: everything passes. On wrong ones see test_faults.py."""

import pytest
from liger_core.testing import OpSpec, OpSuite, load_specs


class TestDemo(OpSuite):
    specs = load_specs(__file__)


def test_a_skip_needs_a_reason():
    with pytest.raises(ValueError, match="without a reason"):
        OpSpec("op", abs, abs, dict, ((1,),), (), skips={"values": " "})


def test_skips_are_shown_and_must_exist(pytester_like):
    row = OpSpec("op", abs, abs, dict, ((1,),), (), skips={"values": "why not", "nothing": "x"})
    suite = type("Suite", (OpSuite,), {"specs": (row,)})()
    (param,) = pytester_like(suite, OpSuite.test_values)
    assert param.marks[0].kwargs["reason"] == "op: why not"
    with pytest.raises(AssertionError, match="nothing"):
        suite.test_skips_name_properties()


@pytest.fixture
def pytester_like():
    """What a suite parametrises a test with."""

    def parametrise(suite, function):
        found = []
        metafunc = type("M", (), {"function": function})()
        metafunc.parametrize = lambda name, params: found.extend(params)
        suite.pytest_generate_tests(metafunc)
        return found

    return parametrise
