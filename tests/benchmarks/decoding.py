"""`make bench-decoding`: how fast clips come out of videos, ours against plain decord reading the same frames in one run.

Each clip is 16 frames, every 4th, from a random start of an H.264 video of 10 seconds at 30 frames a second with a key frame every
250, as WebVid's are. Counted are the 16 frames that are wanted, for each second of CPU time on all threads together: frames a second
and core. Before them lie the frames that only have to be decoded, 110 on average, whoever reads. clip: frames alone, at the video's own
size; 256: cut to 256x256 as training sees them, decord's by its own scaler, which squashes; ours also keeps the shape, corrects
rotation and is antialiased. Rounds take turns; medians, in brackets the best round.
"""

from __future__ import annotations

import argparse
import os
import platform
import random
import statistics
import tempfile
import time
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

from diffdirector.tests.host.inprocess import boot

FRAMES, STEP, SIDE = 16, 4, 256
SECONDS, RATE, KEY_FRAMES = 10, 30, 250
SIZES = ((596, 336), (1280, 720))
PAGE = Path(__file__).with_name("DECODING.md")
HEADER = "| video | ours, clip | decord, clip | ours / decord | ours, 256 | decord, 256 | ours / decord |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clips", type=int, default=6)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    boot(["--cpu"])
    import torch

    torch.set_num_threads(1)
    rows = [HEADER, "|---" * 7 + "|"]
    for width, height in SIZES:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "video.mp4"
            write(path, width, height)
            rows.append(row(f"{width}x{height}, {8 * path.stat().st_size / SECONDS / 1e6:.1f} Mbit/s", path, arguments))
    table = "\n".join(rows) + "\n"
    print(table)
    about = (
        f"{os.cpu_count()} CPU cores ({platform.machine()}), PyAV and decord in one process, {arguments.clips} clips, {arguments.rounds} rounds; "
        "`make bench-decoding` makes this page."
    )
    PAGE.write_text(f"# How fast clips are decoded\n\n{__doc__}\n{about}\n\n{table}")


def row(name: str, path: Path, arguments: argparse.Namespace) -> str:
    import decord
    import torch

    from diffdirector.trainers.sources import VideoSource
    from diffdirector.trainers.video import read_frames

    last = SECONDS * RATE - FRAMES * STEP

    def numbers(start: int) -> list[int]:
        return list(range(start, start + FRAMES * STEP, STEP))

    def theirs(start: int, **size: int) -> torch.Tensor:
        reader = decord.VideoReader(str(path), ctx=decord.cpu(0), num_threads=1, **size)
        return torch.from_numpy(reader.get_batch(numbers(start)).asnumpy())

    ways: dict[str, Callable[[int], torch.Tensor]] = {
        "ours": lambda start: torch.stack(list(read_frames(path, numbers(start)))),
        "decord": theirs,
        "ours 256": lambda start: VideoSource(path, "", frames=FRAMES, frame_step=STEP, start=start, width=SIDE, height=SIDE).read(),
        "decord 256": lambda start: theirs(start, width=SIDE, height=SIDE).permute(0, 3, 1, 2).float() / 255,
    }  # fmt: skip
    apart = (ways["ours"](9).float() - ways["decord"](9).float()).abs().mean()
    assert apart < 4, f"expected the same frames, found them {apart} of 255 apart"
    found: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(arguments.rounds + 1):
        starts = random.Random(number).choices(range(last), k=arguments.clips)
        for way, read in ways.items():
            began = time.process_time()
            for start in starts:
                read(start)
            if number:  # the first warms up
                found[way].append(arguments.clips * FRAMES / (time.process_time() - began))
    print(name, found, flush=True)
    cells = [f"{statistics.median(values):.0f} ({max(values):.0f})" for values in found.values()]
    median = {way: statistics.median(values) for way, values in found.items()}
    ratios = [f"{median['ours'] / median['decord']:.2f}", f"{median['ours 256'] / median['decord 256']:.2f}"]
    return f"| {name} | {cells[0]} | {cells[1]} | {ratios[0]} | {cells[2]} | {cells[3]} | {ratios[1]} |"


def write(path: Path, width: int, height: int) -> None:
    """A texture that drifts, with grain, as a camera sees things."""
    import av
    import numpy as np
    import torch
    import torch.nn.functional as F

    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(1, 3, height // 16 + 40, width // 16 + 40, generator=generator)
    scene = F.interpolate(coarse, scale_factor=16, mode="bicubic").clamp(0, 1)[0]
    grain = torch.randn(3, height, width, generator=generator) * 0.02
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=RATE)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        stream.options = {"crf": "23", "g": str(KEY_FRAMES), "preset": "veryfast"}
        for number in range(SECONDS * RATE):
            seen = scene[:, number : number + height, 2 * number : 2 * number + width]
            picture = ((seen + grain.roll(7 * number, -1)).clamp(0, 1) * 255).byte().permute(1, 2, 0)
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture.numpy()), format="rgb24")
            frame.pts, frame.time_base = number, Fraction(1, RATE)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
