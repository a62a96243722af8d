"""The debug switch: by call, for a while, by the environment."""

import pytest
from liger_core import debug
from liger_core.debug import debugging
from liger_core.env import environment, render


@pytest.fixture(autouse=True)
def _untouched(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(debug, "enabled", None)
    monkeypatch.delenv("LIGER_DEBUG", raising=False)


def test_off_until_called() -> None:
    assert not debugging()
    debug()
    assert debugging()
    debug(False)
    assert not debugging()


def test_for_a_while_and_nested() -> None:
    with debug():
        with debug(False):
            assert not debugging()
        assert debugging()
    assert not debugging()
    with pytest.raises(KeyError), debug():
        raise KeyError
    assert not debugging()


def test_the_variable_is_read_at_each_call(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LIGER_DEBUG", "1")
    assert debugging()
    with debug(False):
        assert not debugging()
    monkeypatch.setenv("LIGER_DEBUG", "0")
    assert not debugging()
    monkeypatch.setenv("LIGER_DEBUG", "yes")
    with pytest.raises(ValueError, match="LIGER_DEBUG must be 1 or 0, not 'yes'"):
        debugging()


def test_the_report_tells(monkeypatch: pytest.MonkeyPatch) -> None:
    assert environment()["debug"] == "off"
    with debug():
        assert "debug" in render(environment())
        assert environment()["debug"].startswith("on")
    monkeypatch.setenv("LIGER_DEBUG", "maybe")
    assert "LIGER_DEBUG must be" in environment()["debug"]
