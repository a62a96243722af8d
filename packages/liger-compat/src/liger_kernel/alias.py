"""python -m liger_kernel.alias FOLDER: write a wheel named liger-kernel that needs liger-compat.

Some tools look the distribution liger-kernel up by name. The wheel holds metadata and no module;
install it where liger-compat is installed. It is written for one's own use: publish it nowhere.
"""

import base64
import hashlib
import sys
import zipfile
from pathlib import Path

from . import __version__

__all__ = ["write_alias"]


def write_alias(folder: str | Path) -> Path:
    """The wheel's path."""
    info = f"liger_kernel-{__version__}.dist-info"
    files = {
        f"{info}/METADATA": (
            "Metadata-Version: 2.4\nName: liger-kernel\n"
            f"Version: {__version__}\n"
            "Summary: The name under which some tools look liger-compat up\n"
            f"License-Expression: BSD-2-Clause\nRequires-Dist: liger-compat=={__version__}\n"
        ),
        f"{info}/WHEEL": (
            "Wheel-Version: 1.0\nGenerator: liger-compat\nRoot-Is-Purelib: true\n"
            "Tag: py3-none-any\n"
        ),
    }
    record = [f"{name},sha256={_digest(text)},{len(text)}" for name, text in files.items()]
    files[f"{info}/RECORD"] = "\n".join([*record, f"{info}/RECORD,,\n"])
    wheel = Path(folder) / f"liger_kernel-{__version__}-py3-none-any.whl"
    wheel.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(wheel, "w") as archive:
        for name, text in files.items():
            archive.writestr(name, text)
    return wheel


def _digest(text: str) -> str:
    digest = hashlib.sha256(text.encode()).digest()
    return base64.urlsafe_b64encode(digest).rstrip(b"=").decode()


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    print(write_alias(sys.argv[1]))
