"""This checkout as the package `diffdirector`, whatever its folder is called.

As a script: python tests/host/as_package.py <module of the package> [arguments], which runs that module's main().
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def load_package() -> None:
    """Make `import diffdirector` find this checkout."""
    locations = [str(ROOT)]
    spec = importlib.util.spec_from_file_location(
        "diffdirector", ROOT / "__init__.py", submodule_search_locations=locations
    )
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules["diffdirector"] = module
    spec.loader.exec_module(module)


if __name__ == "__main__":
    load_package()
    name = sys.argv.pop(1)
    importlib.import_module(f"diffdirector.{name}").main()
