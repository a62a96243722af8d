"""A switch for checks of what only the device can see, such as labels out of range.

Where it is on, ops wait for the device and raise; results are the same. Under CUDA-graph capture
and torch.compile, which cannot wait, it does nothing.
"""

import os
from types import TracebackType
from typing import ClassVar

__all__ = ["debug", "debugging"]


class debug:
    """Turns the checks on, or off: from the call on, or within a `with` statement. Without a call
    the environment variable LIGER_DEBUG decides, which is read by each op: 1 or 0.

        debug()
        with debug(False): ...
    """

    enabled: ClassVar[bool | None] = None

    def __init__(self, enabled: bool = True) -> None:
        self.before, debug.enabled = debug.enabled, enabled

    def __enter__(self) -> None:
        pass

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:  # fmt: skip
        debug.enabled = self.before


def debugging() -> bool:
    """Whether the checks are on.

    Raises:
        ValueError: LIGER_DEBUG is neither 1 nor 0.
    """
    if debug.enabled is not None:
        return debug.enabled
    value = os.environ.get("LIGER_DEBUG", "0")
    if value not in ("0", "1"):
        raise ValueError(f"LIGER_DEBUG must be 1 or 0, not {value!r}")
    return value == "1"
