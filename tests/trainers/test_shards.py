"""WebDataset shards: real tars of real videos, one sample of which is no video, -> clips that stay on disk."""

from __future__ import annotations

import io
import json
import sys
import tarfile
from pathlib import Path
from typing import Any

import fsspec
import pytest
import torch

from diffdirector.tests.trainers.test_dataset import SIZE, mean_encoder
from diffdirector.tests.trainers.videos import write_video
from diffdirector.trainers.config import ConfigError
from diffdirector.trainers.dataset import DatasetError, LatentClips, encode_clips, find_videos
from diffdirector.trainers.loop import step_generator
from diffdirector.trainers.recipe import read_recipe
from diffdirector.trainers.shards import encode_shards, find_shards


def write_shards(folder: Path, count: int = 2) -> str:
    """Tars of three samples each: a video with a .txt, one with a .json and one with nothing; in the first one more, which is no
    video. Returns what a recipe calls them."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        with tarfile.open(folder / f"{number:03}.tar", "w") as tar:
            for sample in range(3):
                write_video(folder / "clip.mp4", frames=8 + 3 * number + sample)
                add(tar, f"{sample}.mp4", (folder / "clip.mp4").read_bytes())
                if sample == 0:
                    add(tar, "0.txt", f"ball {number}\n".encode())
                    if number == 0:
                        add(tar, "00.mp4", b"no video")
                elif sample == 1:
                    add(tar, "1.json", json.dumps({"caption": "a square"}).encode())
    (folder / "clip.mp4").unlink()
    return str(folder / f"{{000..{count - 1:03}}}.tar")


def add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    tar.addfile(member, io.BytesIO(content))


def encode(source: str, cache: Path, calls: list[str] | None = None, **settings: Any) -> LatentClips:
    shards = find_shards(source, "anything", **(SIZE | settings))
    return encode_shards(shards, mean_encoder([] if calls is None else calls), cache)


def test_shards_are_decoded_once_and_give_the_clips_of_their_videos(tmp_path: Path, caplog) -> None:
    source, calls = write_shards(tmp_path / "shards"), list[str]()
    clips = encode(source, tmp_path / "cache", calls)
    assert len(clips) == 6 and calls.count("latents") == 6
    assert "1 of the 7 samples in the shards were left out" in caplog.text
    assert "left out 000.tar, 00.mp4 cannot be decoded" in caplog.text
    lengths = [float(clips.text[row][0, 0, 0]) for row in clips.caption_of[:, None]]
    assert lengths == [len(text) for text in ("ball 0", "a square", "anything", "ball 1", "a square", "anything")]

    again = encode(source, tmp_path / "cache", calls)
    assert calls.count("latents") == 6 and again.digest == clips.digest
    assert caplog.text.count("1 of the 7 samples") == 2, "what was left out is said each time"

    write_video(tmp_path / "whole.mp4", frames=8)
    encoder = mean_encoder([])
    whole = encode_clips(find_videos(tmp_path / "whole.mp4", **SIZE), encoder, tmp_path / "cache", lambda *_: None)
    assert torch.equal(clips.latents[0], whole.latents[0].half().float())
    (tmp_path / "shards" / "001.tar").write_bytes((tmp_path / "shards" / "000.tar").read_bytes())
    assert encode(source, tmp_path / "cache", calls).digest != clips.digest and calls.count("latents") == 9


def test_a_step_sees_what_it_would_of_clips_in_memory(tmp_path: Path) -> None:
    clips = encode(write_shards(tmp_path), tmp_path / "cache", hflip=True, chunks=0)
    assert len(clips) == 2 * (2 + 2 + 2) + 2 * (2 + 3 + 3)
    held = LatentClips(torch.stack(list(clips.latents)), clips.text[torch.arange(len(clips.text))], clips.caption_of)
    for step in range(3):
        for found, expected in zip(
            *(some.sample(step_generator(0, step), 4, 0.3) for some in (clips, held)), strict=True
        ):
            assert torch.equal(found, expected)
    kept, out = clips.held_out(2)
    assert (len(out), len(kept)) == (2, len(clips) - 2 * (3 + 3))
    assert out.sample(step_generator(0, 0), 2, 0.0)[0].shape == (2, 4, 4, 4, 4)
    assert torch.equal(out.latents[1], clips.latents[len(clips) - 6])
    with pytest.raises(DatasetError, match="Holding 6 samples out .* there are 6"):
        clips.held_out(6)


def test_clips_keep_their_shapes(tmp_path: Path) -> None:
    for number, width in enumerate((48, 96)):
        write_video(tmp_path / "clip.mp4", width=width)
        with tarfile.open(tmp_path / f"{number}.tar", "w") as tar:
            add(tar, "clip.mp4", (tmp_path / "clip.mp4").read_bytes())
    clips = encode(str(tmp_path / "{0..1}.tar"), tmp_path / "cache", aspect_buckets=True, width=48, height=48)
    assert [tuple(latents.shape[2:]) for latents in clips.latents] == [(5, 7), (3, 10)]
    assert {clips.sample(step_generator(0, step), 2, 0.0)[0].shape[1:] for step in range(8)} == {
        latents.shape for latents in clips.latents
    }
    assert (clips.longest, clips.frames, clips.width, clips.height) == (4, 4, 56, 40)


def test_what_comes_before_damage_is_kept_and_shards_may_be_anywhere(tmp_path: Path, caplog) -> None:
    write_shards(tmp_path)
    content = (tmp_path / "001.tar").read_bytes()
    memory = fsspec.filesystem("memory")
    memory.pipe("/far/000.tar", (tmp_path / "000.tar").read_bytes())
    memory.pipe("/far/001.tar", content[: content.index(b"2.mp4") + 600])
    clips = encode("memory://far/{000..001}.tar", tmp_path / "cache")
    assert len(clips) == 5
    assert "left out the rest of 001.tar, which is damaged" in caplog.text
    memory.pipe("/far/002.tar", b"")
    with pytest.raises(DatasetError, match="None of the videos can be used"):
        encode("memory://far/002.tar", tmp_path / "cache")
    with pytest.raises(
        DatasetError, match=r"memory://far/003.tar: expected a shard, found none .* What is encoded is kept"
    ):
        encode("memory://far/003.tar", tmp_path / "cache")


def test_a_recipe_of_shards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_shards(tmp_path / "shards")
    (tmp_path / "model.safetensors").touch()

    def recipe(dataset: str) -> Any:
        text = f'recipe = "motion_module"\nmodel.checkpoint = "model.safetensors"\ntraining.name = "m"\n{dataset}'
        (tmp_path / "recipe.toml").write_text(text)
        return read_recipe(tmp_path / "recipe.toml")

    table = '[[dataset]]\nsource = "shards/{000..001}.tar"\nframes = 5\ncaption_file = ""\n'
    read = recipe(table)
    assert [shard.url for shard in read.shards] == ["shards/000.tar", "shards/001.tar"]
    assert (read.videos, read.frames) == ([], 5)
    for dataset, error, message in (
        (table + '[[dataset]]\nsource = "videos"\n', ConfigError, "expected shards .* in every dataset or in none"),
        (table + "repeats = 2\n", ConfigError, "dataset.repeats: expected none beside shards"),
        (table.replace("001}", "002}"), DatasetError, "expected the shard shards/002.tar, found none"),
        (table + "width = 7\n", DatasetError, "width: expected a whole number of at least 8"),
    ):
        with pytest.raises(error, match=message):
            recipe(dataset)
    monkeypatch.setitem(sys.modules, "webdataset", None)
    with pytest.raises(ConfigError, match='read with webdataset, .* "pip install webdataset fsspec"'):
        recipe(table)
