"""The direction of imports (DESIGN): nodes -> trainers -> lora -> motion -> torch; the host only where it is bound."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
LAYERS = ["motion", "lora", "trainers", "nodes"]
HOST_MODULES = {"comfy", "comfy_api", "comfy_extras", "folder_paths", "nodes", "execution", "server"}
MAY_IMPORT_HOST = {
    "motion/context.py",
    "motion/initial_noise.py",
    "motion/module.py",
    "motion/model_sampling.py",
    "motion/pia.py",
    "motion/sparsectrl.py",
    "motion/splice.py",
    "lora/patches.py",
    "trainers/denoiser.py",
    "trainers/sampling.py",
    "trainers/domain_adapter.py",
    "trainers/host.py",
    "trainers/lora_training.py",
    "trainers/motion_director.py",
    "trainers/motion_lora.py",
    "trainers/motion_module.py",
    "trainers/sparse_ctrl.py",
}
FILES = sorted(path.relative_to(ROOT).as_posix() for layer in LAYERS for path in (ROOT / layer).glob("**/*.py"))


def imports(file: str) -> list[tuple[int, str]]:
    """(level of a relative import or 0, module) of every import in the file, nested ones included."""
    found: list[tuple[int, str]] = []
    for node in ast.walk(ast.parse((ROOT / file).read_text())):
        if isinstance(node, ast.Import):
            found += [(0, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            modules = [node.module] if node.module else [alias.name for alias in node.names]
            found += [(node.level, module) for module in modules]
    return found


@pytest.mark.parametrize("file", FILES)
def test_a_layer_imports_only_the_layers_below_it(file: str) -> None:
    layer = LAYERS.index(file.split("/")[0])
    for level, module in imports(file):
        top = module.split(".")[0]
        if level == 2:
            assert LAYERS.index(top) < layer, f"{file} imports {module}"
        elif level == 0 and top in ("motion", "lora", "trainers"):
            pytest.fail(f"{file}: absolute import of our own {module}")


@pytest.mark.parametrize("file", FILES)
def test_the_host_is_imported_only_where_it_is_bound(file: str) -> None:
    hosts = {module for level, module in imports(file) if level == 0 and module.split(".")[0] in HOST_MODULES}
    if file.startswith("nodes/"):
        return
    assert not hosts or file in MAY_IMPORT_HOST, f"{file} imports {hosts}"
    assert "folder_paths" not in hosts
