import liger_posttrain


def test_package_is_empty_and_says_so() -> None:
    assert liger_posttrain.__all__ == []
    assert liger_posttrain.__doc__ is not None
    assert "This version" in liger_posttrain.__doc__
