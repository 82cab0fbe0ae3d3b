"""Which UNet block each motion module follows. Pure: integers and names.

The host numbers an openaimodel UNet's blocks flat, with a downsampling block after every level but the last; motion
checkpoints number them per level, as diffusers does.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from .formats import MotionConfig

Block = tuple[str, int]  # what the host puts into transformer_options["block"]


@dataclass(frozen=True)
class UNetShape:
    """levels: (channels, number of ResBlocks) of each down level; middle: channels of the middle block, None without one."""

    levels: Sequence[tuple[int, int]]
    middle: int | None

    def blocks(self) -> dict[str, tuple[Block, int]]:
        """Site of a motion module -> (UNet block, its channels), for every place a motion module can stand."""
        places: dict[str, tuple[Block, int]] = {}
        block = 1  # input block 0 is the first convolution
        for level, (channels, count) in enumerate(self.levels):
            for index in range(count):
                places[f"down_blocks.{level}.motion_modules.{index}"] = ("input", block), channels
                block += 1
            block += 1
        if self.middle is not None:
            places["mid_block.motion_modules.0"] = ("middle", 0), self.middle
        block = 0
        for level, (channels, count) in enumerate(reversed(self.levels)):
            for index in range(count + 1):
                places[f"up_blocks.{level}.motion_modules.{index}"] = ("output", block), channels
                block += 1
        return places


def match_blocks(shape: UNetShape, config: MotionConfig, name: str) -> dict[Block, str]:
    """UNet block -> site of the motion module that follows it. Raises ValueError when a module finds no block of its width."""
    places = shape.blocks()
    matched: dict[Block, str] = {}
    for site, module in config.sites.items():
        block, channels = places.get(site, (("", 0), 0))
        if channels != module.channels:
            expected, found = (
                ", ".join(map(str, widths)) for widths in (config.down_channels, [width for width, _ in shape.levels])
            )
            raise ValueError(
                f"{name} ({config.version.value}) does not fit this checkpoint: its modules were made for blocks of {expected} channels, the "
                f"checkpoint's UNet has {found} (at {site}). SD1.5 has 320, 640, 1280, 1280 and SDXL 320, 640, 1280: "
                "choose a motion model and a checkpoint of the same family."
            )
        matched[block] = site
    return matched
