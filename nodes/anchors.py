"""The node that gives a clip some of its frames: Anchor Frames."""

from __future__ import annotations

import comfy.utils
import torch
from comfy_api.latest import io

from ..motion.anchors import anchor
from ..motion.indices import parse_indices
from ..trainers.video import cover


class AnchorFrames(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="DiffDirectorAnchorFrames",
            display_name="Anchor Frames",
            category="DiffDirector",
            description="Gives a clip its first, last or any other frames: the sampler holds them and makes the others to fit. Any motion model.",
            search_aliases=["first frame", "last frame", "image to video", "i2v", "start image", "end image", "keyframes", "inpaint frames"],
            inputs=[
                io.Image.Input("images", tooltip="A picture for each index, one for all of them, or a clip as long as the one to make."),
                io.Vae.Input("vae", tooltip="The checkpoint's."),
                io.String.Input(
                    "indices", default="0",
                    tooltip="The frames to hold: 0 is the first, -1 the last, 50% the middle, 8-15 a range; commas between them. even spreads all pictures.",
                ),
                io.Float.Input(
                    "strength", default=1.0, min=0.0, max=1.0, step=0.01,
                    tooltip="1: the frame comes out as given. Below, the sampler mixes what it makes with it.",
                ),
                io.Latent.Input(
                    "latent", optional=True,
                    tooltip="The clip to sample, one latent for each frame; pictures are fitted to its size. Without it, an empty one is made.",
                ),
                io.Int.Input("frames", default=16, min=1, max=4096, optional=True, tooltip="Frames of the clip, where no latent is connected."),
                io.Int.Input(
                    "reach", default=0, min=0, max=64, optional=True,
                    tooltip="Frames on each side that are held as well, ever less: a softer way in and out.",
                ),
            ],
            outputs=[io.Latent.Output(display_name="latent", tooltip="For any sampler, at any denoise.")],
        )  # fmt: skip

    @classmethod
    def execute(cls, images, vae, indices, strength, latent=None, frames=16, reach=0) -> io.NodeOutput:
        given = dict(latent or {})
        if latent is not None:
            if given["samples"].ndim != 4:
                raise ValueError(
                    f"latent: expected one latent for each frame, [frames, channels, height, width], found {list(given['samples'].shape)}. "
                    "Use Empty Latent Image or VAE Encode of an SD1.5 or SDXL checkpoint."
                )
            frames = len(given["samples"])
        places, pictures, strengths = zip(*parse_indices(indices).places(frames, len(images)), strict=True)
        chosen = images[list(pictures)][..., :3]
        if latent is not None:
            height, width = (side * vae.spacial_compression_encode() for side in given["samples"].shape[2:])
            chosen = cover(chosen.movedim(-1, 1), height, width).movedim(1, -1)
        anchors = vae.encode(chosen)
        if latent is None:
            given["samples"] = torch.zeros(frames, *anchors.shape[1:])
        given["samples"], mask = anchor(
            given["samples"], anchors, places, [min(1.0, strength * one) for one in strengths], reach
        )
        if "noise_mask" in given:
            mask = mask * comfy.utils.reshape_mask(given["noise_mask"], given["samples"].shape)[:, :1].to(mask)
        return io.NodeOutput(given | {"noise_mask": mask})
