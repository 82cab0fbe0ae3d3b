"""The real host in this process: ComfyUI on sys.path, this checkout as the package `diffdirector`."""

from __future__ import annotations

import ctypes
import gc
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from xdist.scheduler import LoadScopeScheduling

ROOT = Path(__file__).resolve().parents[1]
LONGEST = ("browser", "full_size")  # marks of files


sys.path.insert(0, str(ROOT / "tests" / "host"))
from as_package import load_package

load_package()

from diffdirector.tests.host.browser import FrontEnd, open_front_end
from diffdirector.tests.host.inprocess import Executor, boot
from diffdirector.tests.host.provision import NEWEST, OLDEST, TREES, surrounding_comfyui

# Set once per run: the host reads its folders when it is imported.
BASE = Path(tempfile.mkdtemp(prefix="diffdirector-host-"))
boot(["--cpu"], BASE)

import torch
from comfy.model_management import unload_all_models
from playwright.sync_api import Page


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--matrix", action="store_true", help="every ComfyUI version we provision, not just the ends")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "host_version" in metafunc.fixturenames:
        versions = list(TREES) if metafunc.config.getoption("--matrix") else [NEWEST, OLDEST]
        metafunc.parametrize("host_version", ["own"] if surrounding_comfyui() else versions, scope="module")


def worker_group(path: Path) -> str:
    """Tests of one group share a worker: a file's do; so do those that open the browser, where two pages at a time are too slow,
    and those with full-size networks, of which two at a time are too large."""
    text = path.read_text(encoding="utf-8")
    return next((mark for mark in LONGEST if f"pytest.mark.{mark}" in text), str(path))


class Scheduling(LoadScopeScheduling):
    """Of make test's workers. xdist's own groups are lost with this pytest."""

    def _split_scope(self, nodeid: str) -> str:
        return worker_group(ROOT / nodeid.split("::")[0])


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Scheduling:
    return Scheduling(config, log)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The groups that take longest come first. A page that was too slow for a click gets one more try, as Playwright's own
    runner gives it; the summary lists it."""
    groups = {path: worker_group(path) for path in {item.path for item in items}}
    items.sort(key=lambda item: LONGEST.index(groups[item.path]) if groups[item.path] in LONGEST else len(LONGEST))
    for item in items:
        if groups[item.path] == "browser":
            item.add_marker(pytest.mark.flaky(reruns=1))


def pytest_unconfigure() -> None:
    shutil.rmtree(BASE, ignore_errors=True)


@pytest.fixture(scope="session")
def base() -> Path:
    """The in-process host's base folder, with the small models in it."""
    from diffdirector.tests.host.checkpoints import link_models

    link_models(BASE)
    return BASE


@pytest.fixture(scope="session")
def executor(base: Path) -> Executor:
    pack = base / "custom_nodes" / "DiffDirector"
    pack.parent.mkdir(parents=True, exist_ok=True)
    pack.symlink_to(ROOT, target_is_directory=True)
    return Executor(pack)


@pytest.fixture(scope="module", params=[False, True], ids=["canvas", "vue"])
def opened(request: pytest.FixtureRequest) -> Iterator[FrontEnd]:
    """The front end of the module's own server, in both ways that it draws nodes."""
    with open_front_end(request.getfixturevalue("server").url, {"Comfy.VueNodes.Enabled": request.param}) as front:
        yield front


@pytest.fixture
def page(opened: FrontEnd) -> Iterator[Page]:
    """An empty graph, on which nothing may go wrong."""
    with opened.empty_graph() as page:
        yield page


@pytest.fixture(autouse=True, scope="module")
def _memory() -> Iterator[None]:
    """What a file's tests loaded goes back to the system: two workers have 24 GB for all of their files."""
    yield
    unload_all_models()
    gc.collect()
    if sys.platform == "linux":
        ctypes.CDLL(None).malloc_trim(0)


@pytest.fixture(autouse=True)
def _inference_mode():
    """Nodes run under inference mode in the host; so do the tests."""
    with torch.inference_mode():
        yield
