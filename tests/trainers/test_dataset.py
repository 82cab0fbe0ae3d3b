"""Video files and frames -> clips, captions, latents."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from diffdirector.tests.trainers.videos import greys, write_video
from diffdirector.trainers.contact_sheet import contact_sheet
from diffdirector.trainers.dataset import (
    ClipId,
    DatasetError,
    Encoder,
    LatentClips,
    encode_clips,
    find_frames,
    find_videos,
)

SIZE = {"frames": 4, "width": 32, "height": 32}


def mean_encoder(calls: list[str]) -> Encoder:
    def latents(pixels: torch.Tensor) -> torch.Tensor:
        calls.append("latents")
        return torch.nn.functional.avg_pool2d(pixels, 8).mean(1, keepdim=True).expand(-1, 4, -1, -1)

    def text(caption: str) -> torch.Tensor:
        calls.append(caption)
        return torch.full((2, 3), float(len(caption)))

    return Encoder(latents, text, "mean", "length")


def encode(sources, folder: Path, calls: list[str] | None = None) -> LatentClips:
    return encode_clips(sources, mean_encoder([] if calls is None else calls), folder / "cache", lambda *_: None)


def folder_of(path: Path, *names: str, **video) -> Path:
    path.mkdir(exist_ok=True)
    for name in names:
        write_video(path / name, **video)
    return path


def captions(sources) -> list[str]:
    return [source.caption for source in sources]


def test_captions_and_cache(tmp_path: Path) -> None:
    videos = tmp_path / "videos"
    (videos / "more").mkdir(parents=True)
    write_video(videos / "b.mp4")
    write_video(videos / "more" / "c.mp4", frames=9)
    (videos / "b.txt").write_text("a ball\n")
    calls: list[str] = []
    progress: list[tuple[int, int]] = []

    def run() -> LatentClips:
        sources = find_videos(videos, "anything", **SIZE)
        return encode_clips(sources, mean_encoder(calls), tmp_path / "cache", lambda *p: progress.append(p))

    clips = run()
    assert [latents.shape for latents in clips.latents] == [(4, 4, 4, 4)] * 2
    assert [clips.text[row, 0, 0] for row in clips.caption_of] == [len("a ball"), len("anything")]
    assert clips.text[-1].max() == 0
    assert progress == [(1, 2), (2, 2)]
    assert all(map(torch.equal, run().latents, clips.latents))
    assert calls == ["latents", "latents", "a ball", "anything", ""], "the second run decoded or encoded again"
    write_video(videos / "b.mp4", frames=10, width=64)
    (videos / "b.txt").write_text("a wide ball\n")
    run()
    assert calls[5:] == ["latents", "a wide ball"]


def test_a_cache_key_changes_with_content_and_every_setting_and_nothing_else(tmp_path: Path) -> None:
    write_video(tmp_path / "a.mp4", frames=24)
    write_video(tmp_path / "b.mp4", frames=25)
    (tmp_path / "same.mp4").write_bytes((tmp_path / "a.mp4").read_bytes())
    first = find_videos(tmp_path / "a.mp4", **SIZE)[0].key()
    changes = {"frames": 5, "frame_step": 2, "start": 1, "width": 40, "height": 40, "aspect_buckets": True}
    keys = {find_videos(tmp_path / "a.mp4", **(SIZE | {key: value}))[0].key() for key, value in changes.items()}
    keys.add(find_videos(tmp_path / "a.mp4", hflip=True, **SIZE)[1].key())
    keys.add(find_videos(tmp_path / "b.mp4", **SIZE)[0].key())
    assert len(keys | {first}) == 9
    assert find_videos(tmp_path / "same.mp4", "of another name", repeats=2, **SIZE)[1].key() == first

    images = torch.rand(8, 32, 32, 3)
    key = find_frames([images], **SIZE)[0].key()
    assert find_frames([images.clone()], "another caption", **SIZE)[0].key() == key
    assert find_frames([images.flip(0)], **SIZE)[0].key() != key


def test_unreadable_videos_are_left_out_with_the_reason(tmp_path: Path, caplog) -> None:
    write_video(tmp_path / "good.mp4")
    write_video(tmp_path / "short.mp4", frames=3)
    (tmp_path / "broken.mp4").write_bytes(b"not a video")
    (tmp_path / "._good.mp4").write_bytes(b"what macOS leaves behind")
    clips = encode(find_videos(tmp_path, **SIZE), tmp_path)
    assert len(clips) == 1
    assert "broken.mp4 cannot be decoded" in caplog.text
    assert (
        "short.mp4: 4 frames at a step of 1 from 0 on need 4 frames, it has 3. Lower frames, frame_step or start."
        in caplog.text
    )
    assert "._good" not in caplog.text
    (tmp_path / "good.mp4").unlink()
    with pytest.raises(DatasetError, match=r"None of the videos(.|\n)*broken(.|\n)*short"):
        find_videos(tmp_path, **SIZE)


def test_videos_that_go_bad_later_are_left_out_too(tmp_path: Path, caplog) -> None:
    folder_of(tmp_path / "videos", "a.mp4", "b.mp4")
    sources = find_videos(tmp_path / "videos", repeats=3, **SIZE)
    (tmp_path / "videos" / "a.mp4").unlink()
    assert len(encode(sources, tmp_path)) == 3
    assert caplog.text.count("left out a.mp4 cannot be read: No such file") == 1
    assert contact_sheet(sources).shape[0] == 96
    (tmp_path / "videos" / "b.mp4").write_bytes(b"not a video")
    for use in (contact_sheet, lambda sources: encode(sources, tmp_path)):
        with pytest.raises(DatasetError, match=r"None of the videos(.|\n)*a.mp4(.|\n)*b.mp4"):
            use(sources)


def test_nothing_to_find(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="expected a video or a folder"):
        find_videos(tmp_path)
    folder_of(tmp_path / "videos", "b.mp4", "a.mov")
    with pytest.raises(DatasetError, match=r"nothing of that name\. Videos in .*videos: a\.mov, b\.mp4\.$"):
        find_videos(tmp_path / "videos" / "c.mp4")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"frames": 0}, "frames: expected a whole number of at least 1, found 0"),
        ({"frame_step": 1.5}, "frame_step: expected a whole number of at least 1, found 1.5"),
        ({"start": -1}, "start: expected a whole number of at least 0, found -1"),
        ({"width": 100}, "width: expected a whole number of at least 8, a multiple of 8, found 100"),
        ({"chunks": -1}, "chunks: expected a whole number of at least 0, found -1"),
        ({"repeats": "2"}, "repeats: expected a whole number of at least 1, found '2'"),
    ],
)
def test_settings_that_cannot_be_are_refused(tmp_path: Path, settings: dict, message: str) -> None:
    write_video(tmp_path / "a.mp4")
    with pytest.raises(DatasetError, match=message):
        find_videos(tmp_path / "a.mp4", **settings)


def test_chunks_follow_one_another_as_far_as_the_video_goes(tmp_path: Path) -> None:
    write_video(tmp_path / "a.mp4", frames=24)
    settings = SIZE | {"frame_step": 2, "start": 1}
    assert [source.start for source in find_videos(tmp_path / "a.mp4", **settings)] == [1]
    every = find_videos(tmp_path / "a.mp4", chunks=0, **settings)
    assert [source.start for source in every] == [1, 9, 17]
    assert every == find_videos(tmp_path / "a.mp4", chunks=9, **settings)
    assert every[:2] == find_videos(tmp_path / "a.mp4", chunks=2, **settings)
    assert [greys(source.read()) for source in every] == [[1, 3, 5, 7], [9, 11, 1, 3], [5, 7, 9, 11]]


def test_frames_are_cut_like_videos(tmp_path: Path) -> None:
    write_video(tmp_path / "a.mp4", frames=24)
    cut = {"chunks": 2, "hflip": True, "frame_step": 2, "frames": 4, "width": 40, "height": 24}
    videos = find_videos(tmp_path / "a.mp4", "a ball", **cut)
    (whole,) = find_videos(tmp_path / "a.mp4", frames=24, width=48, height=32)
    frames = find_frames([whole.read().permute(0, 2, 3, 1)], "a ball", **cut)
    assert len(frames) == len(videos) == 4
    assert captions(frames) == captions(videos)
    for frame, video in zip(frames, videos, strict=True):  # a video's are scaled in whole numbers
        assert (frame.read() - video.read()).abs().max() <= 2 / 255
    cut["width"], cut["height"] = 48, 32  # where nothing is scaled they are the same
    videos = find_videos(tmp_path / "a.mp4", "a ball", **cut)
    frames = find_frames([whole.read().permute(0, 2, 3, 1)], "a ball", **cut)
    assert all(map(torch.equal, (source.read() for source in frames), (source.read() for source in videos)))
    with pytest.raises(DatasetError, match=r"images 1: 16 frames .* need 16 frames, it has 3"):
        find_frames([torch.zeros(3, 8, 8, 3)])
    transparent = find_frames([torch.tensor([1.0, 1.0, 0.5, 0.5]).expand(4, 32, 32, 4)], **SIZE)[0].read()
    assert torch.equal(transparent[0, :, 0, 0], torch.tensor([0.5, 0.5, 0.25]))


def test_mirrored_and_repeated_clips(tmp_path: Path) -> None:
    folder_of(tmp_path / "videos", "a.mp4", "b.mp4", frames=8)
    write_video(tmp_path / "videos" / "b.mp4", frames=9)
    sources = find_videos(tmp_path / "videos", hflip=True, repeats=3, **SIZE)
    assert [source.mirrored for source in sources] == [False, True] * 6
    assert torch.equal(sources[1].read(), sources[0].read().flip(-1))
    calls: list[str] = []
    clips = encode(sources, tmp_path, calls)
    assert len(clips) == 12
    assert calls == ["latents"] * 4 + [""]
    assert len({latents.data_ptr() for latents in clips.latents}) == 4
    assert contact_sheet(sources).shape[0] == 4 * 96 + 3 * 2


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ([], ["of a", "of a", "any", "any"]),
        (["one", "two"], ["one", "one", "two", "two"]),
        (["one", "two", "three", "four"], ["one", "two", "three", "four"]),
        (["one\ntwo"], ["one", "one", "two", "two"]),
        (["one\ntwo\n\n"], ["one", "one", "two", "two"]),
        (["one\n\nthree\n\n"], ["one", "of a", "three", "any"]),
        (["", "two"], ["of a", "of a", "two", "two"]),
    ],
)
def test_captions_for_videos_or_for_clips(tmp_path: Path, given: list[str], expected: list[str]) -> None:
    folder_of(tmp_path / "videos", "a.mp4", "b.mp4", frames=8)
    (tmp_path / "videos" / "a.txt").write_text("of a\n", encoding="utf-8-sig")
    sources = find_videos(tmp_path / "videos", "any", captions=given, chunks=2, **SIZE)
    assert captions(sources) == expected


def test_captions_count_videos_that_are_left_out(tmp_path: Path) -> None:
    folder_of(tmp_path / "videos", "a.mp4", "c.mp4")
    (tmp_path / "videos" / "b.mp4").write_bytes(b"not a video")
    sources = find_videos(tmp_path / "videos", captions=["of a\nof b\nof c"], **SIZE)
    assert captions(sources) == ["of a", "of c"]
    with pytest.raises(
        DatasetError, match="captions: expected 3, one for each video, or 2, one for each clip; found 4"
    ):
        find_videos(tmp_path / "videos", captions=["1", "2", "3", "4"], **SIZE)
    only = find_videos(tmp_path / "videos" / "a.mp4", captions=["of two\nlines"], **SIZE)
    assert captions(only) == ["of two\nlines"]
    (tmp_path / "videos" / "a.txt").write_bytes("für".encode("latin-1"))
    with pytest.raises(DatasetError, match=r"a.txt: expected text in UTF-8"):
        find_videos(tmp_path / "videos", **SIZE)


def test_aspect_buckets_keep_the_shape(tmp_path: Path) -> None:
    folder_of(tmp_path / "videos", "wide.mp4", width=128, height=32)
    write_video(tmp_path / "videos" / "high.mp4", width=32, height=64)
    sources = find_videos(tmp_path / "videos", aspect_buckets=True, **SIZE)
    assert [source.read().shape[2:] for source in sources] == [(48, 24), (16, 64)]
    clips = encode(sources, tmp_path)
    assert [latents.shape for latents in clips.latents] == [(4, 4, 6, 3), (4, 4, 2, 8)]


def test_sampling_drops_captions_and_repeats_with_the_seed(tmp_path: Path) -> None:
    write_video(tmp_path / "a.mp4")
    clips = encode(find_videos(tmp_path / "a.mp4", "ball", **SIZE), tmp_path)
    generator = lambda: torch.Generator().manual_seed(3)  # noqa: E731
    latents, text = clips.sample(generator(), 200, caption_dropout=0.25)
    dropped = (text[:, 0, 0] == 0).float().mean()
    assert 0.15 < dropped < 0.35
    assert latents.shape == (200, 4, 4, 4, 4)
    again = clips.sample(generator(), 200, caption_dropout=0.25)
    assert torch.equal(again[1], text)


def numbered(*shapes: tuple[int, ...], mirrored: bool = False) -> LatentClips:
    """Clip i is all i, its caption's embedding too."""
    latents = [torch.full(shape, float(index)) for index, shape in enumerate(shapes)]
    text = torch.arange(len(shapes) + 1.0)[:, None, None]
    ids = [
        ClipId(f"footage {index // 2 if mirrored else index}", mirrored and index % 2 == 1, "")
        for index in range(len(shapes))
    ]
    return LatentClips(latents, text, torch.arange(len(shapes)), ids)


def test_clips_of_one_size_are_drawn_as_they_always_were() -> None:
    """Runs that were started before there were buckets resume to the same bits."""
    clips = numbered(*[(4, 4, 2, 2)] * 5)
    generator, expected = torch.Generator().manual_seed(7), torch.Generator().manual_seed(7)
    for _ in range(3):
        x, text = clips.sample(generator, 6, 0.5)
        chosen = torch.randint(5, (6,), generator=expected)
        dropped = torch.rand(6, generator=expected) < 0.5
        assert torch.equal(x[:, 0, 0, 0, 0], chosen.float())
        assert torch.equal(text[:, 0, 0], torch.where(dropped, 5, chosen).float())
    assert torch.equal(generator.get_state(), expected.get_state())


def test_a_batch_is_of_one_size_and_sizes_come_as_often_as_they_have_clips() -> None:
    clips = numbered((4, 4, 2, 2), (4, 4, 2, 3), (4, 4, 2, 2), (8, 4, 2, 2), (4, 4, 2, 2))
    generator = torch.Generator().manual_seed(1)
    drawn = []
    for _ in range(500):
        x, text = clips.sample(generator, 2, 0.0)
        assert torch.equal(x[:, 0, 0, 0, 0], text[:, 0, 0])
        drawn += [x[:, 0, 0, 0, 0]]
    counts = np.bincount(torch.cat(drawn).int().numpy(), minlength=5)
    assert (abs(counts - 200) < 60).all(), counts


def test_held_out_clips_are_nowhere_in_training() -> None:
    clips = numbered(*[(4, 4, 2, 2)] * 6, mirrored=True)
    training, held = clips.held_out(1)
    assert [float(latents.mean()) for latents in training.latents] == [0, 1, 2, 3]
    assert [float(latents.mean()) for latents in held.latents] == [4]
    assert held.sample(torch.Generator(), 1, 0.0)[1].item() == 4
    assert len({clips.digest, training.digest, held.digest}) == 3
    assert [len(part) for part in clips.held_out(0)] == [6, 0]
    with pytest.raises(DatasetError, match=r"Holding 3 clips out .* nothing to train on: there are 3 different ones"):
        clips.held_out(3)
    tensors = LatentClips(torch.zeros(3, 4, 4, 2, 2), torch.zeros(1, 2, 3), torch.zeros(3, dtype=torch.long))
    assert [len(part) for part in tensors.held_out(1)] == [2, 1]


def test_the_digest_tells_datasets_apart(tmp_path: Path) -> None:
    folder_of(tmp_path / "videos", "a.mp4")
    find = lambda caption, **more: find_videos(tmp_path / "videos", caption, **SIZE, **more)  # noqa: E731
    digests = [
        encode(sources, tmp_path).digest
        for sources in (
            find("a ball"),
            find("a ball"),
            find("a car"),
            find("a ball", hflip=True),
            find("a ball", repeats=2),
        )
    ]
    assert len(digests[0]) == 16
    assert digests[0] == digests[1]
    assert len(set(digests)) == 4


def test_the_contact_sheet_shows_the_clips(tmp_path: Path) -> None:
    folder_of(tmp_path / "videos", "a.mp4", "b.mp4", frames=24)
    write_video(tmp_path / "videos" / "b.mp4", frames=9, width=128)
    sources = find_videos(tmp_path / "videos", frames=9, width=48, height=32, aspect_buckets=True)
    sheet = contact_sheet(sources, rows=2, columns=3, height=32)
    first, second = sources[0].read(), sources[1].read()
    wide, wider = (round(clip.shape[3] * 32 / clip.shape[2]) for clip in (first, second))
    assert sheet.shape == (32 + 2 + 32, 3 * wider + 2 * 2, 3)
    for column, number in enumerate((0, 4, 8)):
        left = column * (wide + 2)
        shown = sheet[:32, left : left + wide].permute(2, 0, 1)
        assert greys(shown[None]) == [number]
        assert shown[:, :, : wide // 3].min() > 0.9
    assert sheet[:32, 3 * wide + 4 :].max() == 0


def test_a_contact_sheet_of_many_clips_shows_some_of_all(tmp_path: Path) -> None:
    images = [torch.full((1, 8, 8, 3), number / 40) for number in range(40)]
    sources = find_frames(images, frames=1, width=8, height=8)
    sheet = contact_sheet(sources, rows=10, height=8)
    shown = [round(float(sheet[row * 10 + 4, 4, 0]) * 40) for row in range(10)]
    assert sheet.shape[0] == 98
    assert shown == list(range(0, 40, 4))
