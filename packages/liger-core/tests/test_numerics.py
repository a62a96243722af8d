"""The yardstick: what it lets pass and what not."""

import pytest
import torch
from liger_core.testing import assert_accurate
from liger_core.testing.numerics import same_bits


def test_one_wrong_element_does_not_hide():
    truth = torch.randn(100_000, dtype=torch.float64)
    eager = truth.bfloat16()
    actual = eager.clone()
    actual[777] = 0.0
    with pytest.raises(AssertionError, match=r"max error .* worst element \(777,\)"):
        assert_accurate("y", actual, eager, truth)


def test_small_errors_everywhere_do_not_hide():
    truth = torch.randn(10_000, dtype=torch.float64)
    eager = truth.bfloat16()
    with pytest.raises(AssertionError, match="rms error"):
        assert_accurate("y", (truth * 1.005).bfloat16(), eager, truth, bound=1.25)
    assert_accurate("y", eager, eager, truth, bound=1.0)


@pytest.mark.parametrize("elements", [1, 2, 16, 1000])
def test_correct_rounding_always_passes(elements):
    """Even if eager happens to be exact, and however few elements there are."""
    for seed in range(50):
        truth = torch.randn(
            elements, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)
        )
        lucky = truth.bfloat16()
        truth = lucky.double() * (1 + 2**-9)
        assert_accurate("y", truth.bfloat16(), lucky, truth)


def test_a_hard_case_excuses():
    truth = torch.full((64,), 1e-9, dtype=torch.float64)
    eager, actual = torch.full((64,), 3e-9), torch.full((64,), -2e-9)
    assert_accurate("y", actual, eager, truth)
    with pytest.raises(AssertionError, match="rms error"):
        assert_accurate("y", actual, truth.float(), truth)
    # terms of order one cancelled: an ulp of them is the scale
    assert_accurate("y", actual, truth.float(), truth, moved=truth + 1e-7)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_what_is_not_finite_must_be_in_its_place(value):
    truth = torch.ones(8, dtype=torch.float64)
    wrong = torch.ones(8)
    wrong[3] = value
    with pytest.raises(AssertionError, match="NaN or infinity"):
        assert_accurate("y", wrong, torch.ones(8), truth)
    truth[3] = value
    assert_accurate("y", wrong, wrong, truth)
    with pytest.raises(AssertionError, match="NaN or infinity"):
        assert_accurate("y", torch.ones(8), wrong, truth)


def test_overflow_of_the_dtype_is_right():
    assert_accurate(
        "y",
        torch.tensor([float("inf")]).half(),
        torch.zeros(1).half(),
        torch.tensor([1e6]).double(),
    )


def test_shape_and_dtype():
    truth = torch.ones(2, dtype=torch.float64)
    with pytest.raises(AssertionError, match="dtype"):
        assert_accurate("y", truth.float(), truth.half(), truth)
    with pytest.raises(AssertionError, match="shape"):
        assert_accurate("y", truth.float()[:1], truth.float(), truth)


def test_same_bits():
    nan = torch.tensor([float("nan"), 0.0])
    assert same_bits(nan, nan.clone())
    assert not same_bits(nan, torch.tensor([float("nan"), -0.0]))
    assert not same_bits(nan, nan.double())
    assert same_bits(torch.ones(2, 2)[::2, ::2], torch.ones(1, 1)[:, :1].expand(1, 1))
    assert same_bits(torch.tensor(True), torch.tensor(True))
    assert same_bits(None, None)
    assert not same_bits(None, nan)
