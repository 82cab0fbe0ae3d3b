"""The help pages: each shows one picture of its node in use, small, that can be made again."""

from __future__ import annotations

import re

import pytest
from PIL import Image

from diffdirector.tests.host.help_graphs import PICTURES
from diffdirector.tests.host.provision import ROOT

DOCS = ROOT / "web" / "docs"
PAGES = sorted(path.stem for path in DOCS.glob("*.md"))


@pytest.mark.parametrize("name", PAGES)
def test_a_page_shows_one_small_picture_of_its_node(name: str) -> None:
    text = (DOCS / f"{name}.md").read_text()
    title = text.splitlines()[0].removeprefix("# ")
    assert re.findall(r"!\[(.*?)\]\((.*?)\)", text) == [(f"{title} in a graph", f"images/{name}.webp")]
    path = DOCS / "images" / f"{name}.webp"
    with Image.open(path) as picture:
        assert picture.format == "WEBP" and 400 <= picture.width <= 800 and picture.height <= 960
    assert path.stat().st_size < 50_000


def test_every_picture_belongs_to_a_page_and_can_be_made_again() -> None:
    images = sorted((DOCS / "images").iterdir())
    assert [path.stem for path in images] == PAGES == sorted(PICTURES)
    assert sum(path.stat().st_size for path in images) < 1_500_000
