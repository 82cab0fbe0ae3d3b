"""Tables of videos as WebVid and the original trainer have them."""

from __future__ import annotations

from pathlib import Path

import pytest

from diffdirector.tests.trainers.videos import write_video
from diffdirector.trainers.config import ConfigError
from diffdirector.trainers.dataset import find_videos
from diffdirector.trainers.recipe import read_recipe
from diffdirector.trainers.video import DatasetError

RECIPE = """
recipe = "motion_module"
[model]
checkpoint = "sd15.safetensors"
[dataset]
source = "list.csv"
{videos}
caption = "anything"
frames = 4
width = 32
height = 32
[training]
name = "m"
"""
TABLE = """videoid,contentUrl,duration,page_dir,name
7,https://example.org/7.mp4,PT01S,000001_000050,"a ball, red"
8,https://example.org/8.mp4,PT01S,000051_000100,
9,https://example.org/9.mp4,PT01S,000051_000100,never downloaded
"""


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """7 as the original's loader wants it, 8 as WebVid is downloaded, 9 not at all."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "videos" / "000051_000100").mkdir(parents=True)
    write_video(tmp_path / "videos" / "7.mp4")
    write_video(tmp_path / "videos" / "000051_000100" / "8.mp4")
    (tmp_path / "videos" / "7.txt").write_text("not this")
    (tmp_path / "list.csv").write_text(TABLE, encoding="utf-8-sig")
    (tmp_path / "sd15.safetensors").touch()
    return tmp_path


def test_a_recipe_reads_the_table_and_leaves_out_what_is_not_there(folder: Path, caplog) -> None:
    (folder / "recipe.toml").write_text(RECIPE.format(videos='videos = "videos"'))
    clips = read_recipe(folder / "recipe.toml").videos
    assert [(clip.path.name, clip.caption) for clip in clips] == [("7.mp4", "a ball, red"), ("8.mp4", "anything")]
    assert "left out 9.mp4 cannot be read: No such file" in caplog.text
    assert clips[1].read().shape == (4, 3, 32, 32)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("id,text\n1,a\n", "list.csv: expected a table with the columns videoid, name and page_dir, found id, text"),
        ("", "page_dir, found none; videoid and name lack"),
        ("videoid,name\nnot there,a\n", "None of the videos can be used"),
    ],
)
def test_tables_that_cannot_be_used_are_refused(folder: Path, content: str, message: str) -> None:
    (folder / "list.csv").write_text(content)
    with pytest.raises(DatasetError, match=message):
        find_videos(Path("list.csv"), videos="videos")


def test_a_table_that_is_no_text_or_without_its_folder_is_refused(folder: Path) -> None:
    (folder / "recipe.toml").write_text(RECIPE.format(videos=""))
    with pytest.raises(ConfigError, match="dataset.videos: expected the folder of the videos that list.csv lists"):
        read_recipe(folder / "recipe.toml")
    with pytest.raises(DatasetError, match="videos: expected the folder .* found no nowhere"):
        find_videos(Path("list.csv"), videos="nowhere")
    with pytest.raises(DatasetError, match="gone.csv: expected a table .* found none: No such file"):
        find_videos(Path("gone.csv"), videos="videos")
    (folder / "list.csv").write_bytes("videoid,name\n1,für".encode("latin-1"))
    with pytest.raises(DatasetError, match=r"list.csv: expected a table \(CSV\) in UTF-8"):
        find_videos(Path("list.csv"), videos="videos")
