"""python alone.py liger-norms liger-core: import a package; only the siblings named may be there.

Run by `nox -s wheels` where the package was installed from its wheel.
"""

import importlib
import importlib.util
import sys
from pathlib import Path

package, *declared = sys.argv[1:]
everything = {path.parent.name for path in Path(__file__).parents[1].glob("packages/*/src")}
importlib.import_module(package.replace("-", "_"))
here = {name for name in everything if importlib.util.find_spec(name.replace("-", "_"))}
if here != {package, *declared}:
    sys.exit(f"{package}: importable are {sorted(here)}, declared are {sorted(declared)}")
