"""The first steps of convergence.py, which `nox -s convergence` runs in full."""

import convergence
import pytest


@pytest.mark.parametrize("dtype", convergence.DTYPES)
@pytest.mark.parametrize("family", convergence.ARCHITECTURES)
def test_curves_agree(family, dtype):
    convergence.check(family, convergence.DTYPES[dtype], steps=20)


def test_a_wrong_gradient_is_seen(monkeypatch):
    train = convergence.train

    def biased(family, dtype, steps, patched, nudged):
        return train(family, dtype, steps, False, nudged) * (1.001 if patched else 1.0)

    monkeypatch.setattr(convergence, "train", biased)
    with pytest.raises(AssertionError, match="patched differs by 1"):
        convergence.check("llama", convergence.DTYPES["fp32"], steps=20)
