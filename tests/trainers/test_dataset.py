"""Real video files through the real decoder."""

from __future__ import annotations

from pathlib import Path

import av
import numpy as np
import pytest
import torch

from diffdirector.trainers.dataset import DatasetError, Encoder, encode_clips, find_videos, read_clip

SIZE = {"frames": 4, "width": 32, "height": 32}


def write_video(path: Path, frames: int = 12, width: int = 48, height: int = 32) -> None:
    """Frame i has the grey value 16 + 18 * i, with a white left half."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=8)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        stream.options = {"crf": "4"}
        for index in range(frames):
            picture = np.full((height, width, 3), 16 + 18 * index, np.uint8)
            picture[:, : width // 2] = 255
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture)))
        container.mux(stream.encode())


def mean_encoder(calls: list[str]) -> Encoder:
    def latents(pixels: torch.Tensor) -> torch.Tensor:
        calls.append("latents")
        return torch.nn.functional.avg_pool2d(pixels, 8).mean(1, keepdim=True).expand(-1, 4, -1, -1)

    def text(caption: str) -> torch.Tensor:
        calls.append(caption)
        return torch.full((2, 3), float(len(caption)))

    return Encoder(latents, text, "mean", "length")


def test_only_the_frames_asked_for_in_order(tmp_path: Path) -> None:
    write_video(tmp_path / "a.mp4")
    (source,) = find_videos(tmp_path / "a.mp4", "", frames=4, frame_step=2, start=1, width=48, height=32)
    clip = read_clip(source)
    assert clip.shape == (4, 3, 32, 48)
    greys = clip[:, :, :, 30:].mean((1, 2, 3)) * 255
    assert np.allclose(greys, [16 + 18 * i for i in (1, 3, 5, 7)], atol=3)


def test_pictures_are_covered_and_cut_never_squashed(tmp_path: Path) -> None:
    write_video(tmp_path / "wide.mp4", width=96, height=32)
    (source,) = find_videos(tmp_path / "wide.mp4", **SIZE)
    clip = read_clip(source)
    assert clip.shape == (4, 3, 32, 32)
    white = (clip[0, 0] > 0.8).float().mean(0)
    assert white[:15].min() == 1
    assert white[17:].max() == 0


def test_captions_and_cache(tmp_path: Path) -> None:
    videos = tmp_path / "videos"
    (videos / "more").mkdir(parents=True)
    write_video(videos / "b.mp4")
    write_video(videos / "more" / "c.mp4", frames=9)
    (videos / "b.txt").write_text("a ball\n")
    calls: list[str] = []
    progress: list[tuple[int, int]] = []
    encode = lambda: encode_clips(  # noqa: E731
        find_videos(videos, "anything", **SIZE), mean_encoder(calls), tmp_path / "cache", lambda *p: progress.append(p)
    )
    clips = encode()
    assert clips.latents.shape == (2, 4, 4, 4, 4)
    assert [clips.text[row, 0, 0] for row in clips.caption_of] == [len("a ball"), len("anything")]
    assert clips.text[-1].max() == 0
    assert progress == [(1, 2), (2, 2)]
    assert torch.equal(encode().latents, clips.latents)
    assert calls == ["latents", "latents", "a ball", "anything", ""], "the second run decoded or encoded again"
    write_video(videos / "b.mp4", frames=10, width=64)
    (videos / "b.txt").write_text("a wide ball\n")
    encode()
    assert calls[5:] == ["latents", "a wide ball"]


def test_unreadable_videos_are_left_out_with_the_reason(tmp_path: Path, caplog) -> None:
    write_video(tmp_path / "good.mp4")
    write_video(tmp_path / "short.mp4", frames=3)
    (tmp_path / "broken.mp4").write_bytes(b"not a video")
    clips = encode_clips(find_videos(tmp_path, **SIZE), mean_encoder([]), tmp_path / "cache", lambda *_: None)
    assert len(clips.latents) == 1
    assert "broken.mp4 cannot be decoded" in caplog.text
    assert "short.mp4: 4 frames at a step of 1 from 0 on need 4 frames, it has fewer" in caplog.text
    (tmp_path / "good.mp4").unlink()
    with pytest.raises(DatasetError, match=r"None of the videos(.|\n)*broken(.|\n)*short"):
        encode_clips(find_videos(tmp_path, **SIZE), mean_encoder([]), tmp_path / "cache", lambda *_: None)


def test_nothing_to_find(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="expected a video or a folder"):
        find_videos(tmp_path)


def test_sampling_drops_captions_and_repeats_with_the_seed(tmp_path: Path) -> None:
    write_video(tmp_path / "a.mp4")
    clips = encode_clips(find_videos(tmp_path, "ball", **SIZE), mean_encoder([]), tmp_path / "cache", lambda *_: None)
    generator = lambda: torch.Generator().manual_seed(3)  # noqa: E731
    latents, text = clips.sample(generator(), 200, caption_dropout=0.25)
    dropped = (text[:, 0, 0] == 0).float().mean()
    assert 0.15 < dropped < 0.35
    assert latents.shape == (200, 4, 4, 4, 4)
    again = clips.sample(generator(), 200, caption_dropout=0.25)
    assert torch.equal(again[1], text)
