"""What the registry and its checkers want of a pack: comfy-test on the real server, and a complete pyproject.toml."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from playwright.sync_api import sync_playwright

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

from diffdirector.tests.demo import stack
from diffdirector.tests.host.provision import ROOT, find_chromium, provision
from diffdirector.tests.host.server import PACK_NAME, Server

LEVELS = ["syntax", "install", "registration", "instantiation", "static_capture", "validation", "execution"]
NOT_COPIED = (".git", ".*_cache", ".hypothesis", "__pycache__", "node_modules", "weights", "output")


@pytest.mark.slow
@pytest.mark.browser
def test_comfy_test_passes_at_all_of_its_levels(tmp_path: Path) -> None:
    """comfy-test runs in a copy of the pack, as it follows links, beside the server that it looks at."""
    stack.link_models(tmp_path)
    packs, logs, copy = tmp_path / "custom_nodes", tmp_path / "logs", tmp_path / "copy" / "custom_nodes" / PACK_NAME
    for folder in (packs, logs):
        folder.mkdir()
    shutil.copy(ROOT / "tests" / "host" / "validate_endpoint.py", packs)
    shutil.copytree(ROOT, copy, ignore=shutil.ignore_patterns(*NOT_COPIED))
    host = provision()
    with Server(host, tmp_path) as server:
        (logs / "server.log").symlink_to(server.log)
        environment = {
            "HOME": str(tmp_path), "COMFY_TEST_LOGS_DIR": str(logs), "PYTHONPATH": str(host.comfyui),
            "PLAYWRIGHT_BROWSERS_PATH": str(link_browser(tmp_path / "browsers")),
        }  # fmt: skip
        ran = subprocess.run(
            [host.python.with_name("comfy-test"), "run", "--server-url", server.url],
            cwd=copy, env=os.environ | environment, capture_output=True, text=True,
        )  # fmt: skip
    assert ran.returncode == 0, ran.stdout[-4000:] + ran.stderr[-2000:]
    assert [level for level in LEVELS if f"[{level.upper()}] PASSED" not in ran.stdout] == []
    assert f"Levels: {', '.join(LEVELS)}\n" in ran.stdout
    (results,) = (json.loads(path.read_text()) for path in logs.rglob("results.json"))
    assert results["summary"] == {"total": 1, "passed": 1, "failed": 0}
    captured = {path.stem for path in logs.rglob("screenshots/*.png")}
    assert captured == {"registry-check", "registry-check_executed"}
    assert len(list((tmp_path / "output").glob("registry-check*.webp"))) == 1


def link_browser(folder: Path) -> Path:
    """Debian's Chromium where playwright, looking in this folder, expects its own."""
    with sync_playwright() as playwright:
        revision = Path(playwright.chromium.executable_path).parts[-3].removeprefix("chromium-")
    shell = folder / f"chromium_headless_shell-{revision}" / "chrome-headless-shell-linux64" / "chrome-headless-shell"
    shell.parent.mkdir(parents=True)
    shell.symlink_to(find_chromium())
    return folder


@pytest.fixture(scope="module")
def declared() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())


def test_the_project_is_described_as_the_registry_asks(declared: dict[str, Any]) -> None:
    project, comfy = declared["project"], declared["tool"]["comfy"]
    assert re.fullmatch(r"[a-z](?:[-_.]?[a-z0-9])*", project["name"]) and len(project["name"]) < 100
    assert "comfyui" not in project["name"]
    assert re.fullmatch(r"\d+\.\d+\.\d+", project["version"])
    assert 40 < len(project["description"]) < 200
    assert (ROOT / project["license"]["file"]).is_file() and (ROOT / project["readme"]).is_file()
    assert "Operating System :: OS Independent" in project["classifiers"]
    assert any(name.startswith("Environment :: GPU :: ") for name in project["classifiers"])
    assert comfy["PublisherId"] and comfy["DisplayName"] == PACK_NAME


def test_its_addresses_are_of_one_repository(declared: dict[str, Any]) -> None:
    urls, icon = declared["project"]["urls"], declared["tool"]["comfy"]["Icon"]
    assert set(urls) == {"Repository", "Documentation", "Bug Tracker"}
    assert all(url.startswith(urls["Repository"]) for url in urls.values())
    path = icon.removeprefix(urls["Repository"].replace("github.com", "raw.githubusercontent.com") + "/main/")
    picture = ElementTree.parse(ROOT / path).getroot()
    assert picture.tag.endswith("svg") and picture.get("width") == picture.get("height") == "256"
    assert (ROOT / path).stat().st_size < 4096


def test_its_dependencies_are_those_of_requirements_txt(declared: dict[str, Any]) -> None:
    lines = (ROOT / "requirements.txt").read_text().splitlines()
    assert declared["project"]["dependencies"] == [line for line in lines if line and not line.startswith("#")]
