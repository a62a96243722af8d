"""python alone.py liger-norms liger-core: import a package; only the siblings named may be there.

Run by `nox -s wheels` where the package was installed from its wheel.
"""

import importlib
import importlib.util
import sys
from pathlib import Path

package, *declared = sys.argv[1:]
sources = Path(__file__).parents[1].glob("packages/*/src/*")
# distribution -> import name
everything = {path.parents[1].name: path.name for path in sources if (path / "py.typed").exists()}
importlib.import_module(everything[package])
here = {name for name, module in everything.items() if importlib.util.find_spec(module)}
if here != {package, *declared}:
    sys.exit(f"{package}: importable are {sorted(here)}, declared are {sorted(declared)}")
