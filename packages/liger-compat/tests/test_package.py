import liger_compat


def test_package_is_empty_and_says_so() -> None:
    assert liger_compat.__all__ == []
    assert liger_compat.__doc__ is not None
    assert "This version" in liger_compat.__doc__
