"""The generic suite over this package's specs."""

from liger_core.testing import OpSuite, load_specs


class TestOps(OpSuite):
    specs = load_specs(__file__)
