"""The node that gives a PIA motion model its picture."""

from __future__ import annotations

from comfy_api.latest import io

from ..motion.pia import apply_picture
from ..motion.picture import Picture
from ..motion.similarity import MOTIONS
from .types import CurveSocket, curve


class PIA(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="DiffDirectorPIA",
            display_name="PIA (Image to Animation)",
            category="DiffDirector",
            description="Animates a picture as the prompt says, with a PIA motion model. Works with every sampler and with context windows.",
            search_aliases=["pia", "personalized image animator", "image to video", "i2v", "image to animation", "pia.ckpt", "loop", "style transfer"],
            inputs=[
                io.Model.Input("model", tooltip="A model with a PIA motion model (pia.ckpt), after Apply Motion Model."),
                io.Vae.Input("vae", tooltip="The checkpoint's. It encodes the picture."),
                io.Image.Input("image", tooltip="One picture. It is scaled to the size of the latents and cut at the centre."),
                io.Combo.Input(
                    "motion", options=MOTIONS, default=MOTIONS[0],
                    tooltip="How far the frames may go from the picture. loop: and come back to it. style transfer: from the start, into the "
                    "checkpoint's own style.",
                ),
                io.Int.Input(
                    "frame", default=0, min=-10000, max=10000, optional=True,
                    tooltip="The frame of the clip that is the picture: 0 is the first, -1 the last.",
                ),
                CurveSocket.Input(
                    "similarity", optional=True,
                    tooltip="From Curve, in the place of motion and frame: how like the picture each frame is. 1: the same; 0.5: far from it.",
                ),
            ],
            outputs=[io.Model.Output(tooltip="For any sampler, with an empty batch of latents: one for each frame.")],
        )  # fmt: skip

    @classmethod
    def execute(cls, model, vae, image, motion=MOTIONS[0], frame=0, similarity=None) -> io.NodeOutput:
        picture = Picture(image[..., :3].movedim(-1, 1), vae, motion, frame, curve(similarity))
        return io.NodeOutput(apply_picture(model, picture))
