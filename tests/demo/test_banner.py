from __future__ import annotations

from PIL import Image

from diffdirector.tests.host.provision import ROOT

from . import banner, evaluate


def test_the_readme_shows_clips_of_the_demos_page() -> None:
    assert f"({banner.BANNER.relative_to(ROOT)})" in (ROOT / "README.md").read_text()
    assert banner.BANNER.stat().st_size < 400_000
    first, *_ = banner.cut(evaluate.PAGE.with_name("contact-sheet.webp"), 1)
    with Image.open(banner.BANNER) as picture:
        assert picture.n_frames == len(first) == 16
        corner = picture.convert("RGB").getpixel((4 + banner.SIZE // 2, 64 + banner.SIZE // 2))
    shown = first[0, banner.SIZE // 2, banner.SIZE // 2] * 255
    assert max(abs(a - b) for a, b in zip(corner, shown.tolist(), strict=True)) < 30
