"""SparseCtrl: Load SparseCtrl, Apply SparseCtrl, Scribble Preprocessor."""

from __future__ import annotations

from comfy_api.latest import io, ui

from ..motion.scribbles import LINES, METHODS, scribbles
from ..motion.sparsectrl import SparseControl, load_sparse_ctrl
from . import folders
from .looping import looping

MOST_STILLS = 6  # of a storyboard; more pictures are a clip


class LoadSparseCtrl(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="DiffDirectorLoadSparseCtrl",
            display_name="Load SparseCtrl",
            category="DiffDirector",
            description="Loads a SparseCtrl, for pictures (rgb) or for scribbles, which decides some frames of a clip and carries them on.",
            search_aliases=["sparsectrl", "sparse control", "v3_sd15_sparsectrl_rgb", "v3_sd15_sparsectrl_scribble", "image to video"],
            inputs=[
                io.Combo.Input(
                    "control_net_name", options=folders.names(folders.CONTROLNETS),
                    tooltip="A file in models/controlnet. It is recognised by its content, not by its name.",
                )
            ],
            outputs=[io.ControlNet.Output(display_name="control_net", tooltip="Connect it to Apply SparseCtrl.")],
        )  # fmt: skip

    @classmethod
    def execute(cls, control_net_name: str) -> io.NodeOutput:
        path = folders.path_of(folders.CONTROLNETS, control_net_name)
        return io.NodeOutput(load_sparse_ctrl(path, control_net_name))


class ApplySparseCtrl(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="DiffDirectorApplySparseCtrl",
            display_name="Apply SparseCtrl",
            category="DiffDirector",
            description="Gives frames of a clip a picture or a scribble to follow, and lets SparseCtrl carry them on to the others.",
            search_aliases=["sparsectrl", "image to video", "i2v", "first frame", "last frame", "interpolate", "storyboard", "sketch to video"],
            inputs=[
                io.Conditioning.Input("positive", tooltip="The prompt. ControlNets that it has stay."),
                io.Conditioning.Input("negative", tooltip="The negative prompt. ControlNets that it has stay."),
                io.ControlNet.Input("control_net", tooltip="From Load SparseCtrl."),
                io.Image.Input(
                    "images",
                    tooltip="A picture for each index, one for all of them, or a clip as long as the one to make. For scribbles: light lines on black.",
                ),
                io.String.Input(
                    "indices", default="0",
                    tooltip="The frames of the pictures: 0 is the first, -1 the last, 50% the middle, 8-15 a range; with commas between. "
                    "8 = 0.5 counts half. Or spread all pictures: even, start, end or centre.",
                ),
                io.Vae.Input("vae", optional=True, tooltip="The checkpoint's. Needed for an rgb SparseCtrl; scribbles go without."),
                io.Float.Input(
                    "strength", default=1.0, min=0.0, max=10.0, step=0.01, optional=True, tooltip="How closely the pictures are followed. 0 is none.",
                ),
                io.Float.Input(
                    "start_percent", default=0.0, min=0.0, max=1.0, step=0.001, optional=True, tooltip="From this part of the sampling on.",
                ),
                io.Float.Input(
                    "end_percent", default=1.0, min=0.0, max=1.0, step=0.001, optional=True, tooltip="Up to this part of the sampling.",
                ),
                io.Float.Input(
                    "motion_strength", default=1.0, min=0.0, max=2.0, step=0.01, optional=True, advanced=True,
                    tooltip="How strongly SparseCtrl's own motion modules carry the pictures on to other frames.",
                ),
                io.Boolean.Input(
                    "nearest_in_windows", default=False, optional=True, advanced=True,
                    tooltip="With Context Windows: a window without a picture sees the nearest one, at its edge. Otherwise it is left as it is.",
                ),
            ],
            outputs=[
                io.Conditioning.Output(display_name="positive", tooltip="For the sampler, or for a further ControlNet."),
                io.Conditioning.Output(display_name="negative", tooltip="For the sampler, or for a further ControlNet."),
            ],
        )  # fmt: skip

    @classmethod
    def execute(
        cls, positive, negative, control_net, images, indices, vae=None, strength=1.0, start_percent=0.0, end_percent=1.0,
        motion_strength=1.0, nearest_in_windows=False,
    ) -> io.NodeOutput:  # fmt: skip
        if not isinstance(control_net, SparseControl):
            raise ValueError(
                f"control_net: expected a SparseCtrl from Load SparseCtrl, found a {type(control_net).__name__}. "
                "Apply ControlNets with ComfyUI's Apply ControlNet."
            )
        control = control_net.conditioned(
            images[..., :3].movedim(-1, 1), indices,
            vae=vae, strength=strength, percent_range=(start_percent, end_percent), motion_strength=motion_strength, nearest=nearest_in_windows,
        )  # fmt: skip
        if strength == 0:
            return io.NodeOutput(positive, negative)
        after = {}  # one for all that had the same before: the host samples those together

        def controlled(conditioning):
            result = []
            for text, settings in conditioning:
                before = settings.get("control")
                if before not in after:
                    after[before] = control.copy().set_previous_controlnet(before)
                result.append([text, settings | {"control": after[before], "control_apply_to_uncond": False}])
            return result

        return io.NodeOutput(controlled(positive), controlled(negative))


class ScribblePreprocessor(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="DiffDirectorScribblePreprocessor",
            display_name="Scribble Preprocessor",
            category="DiffDirector",
            description="Makes scribbles of pictures, or of drawings, as SparseCtrl wants them: light lines on black.",
            search_aliases=["scribble", "sketch", "line art", "canny", "edges", "sparsectrl", "preprocessor", "invert"],
            inputs=[
                io.Image.Input("images", tooltip="Photographs, frames or drawings."),
                io.Combo.Input(
                    "method", options=METHODS, default=LINES, optional=True,
                    tooltip="lines: soft, like a pencil's. canny: thin edges. sobel: edges as light as they are sharp. "
                    "drawing: for what is drawn already, on paper or on black.",
                ),
                io.Float.Input(
                    "threshold", default=0.1, min=0.0, max=1.0, step=0.01, optional=True,
                    tooltip="The contrast that makes a line. Lower finds more of them. Not used for drawings.",
                ),
                io.Int.Input(
                    "thickness", default=0, min=-16, max=16, optional=True,
                    tooltip="Pixels by which lines are made thicker on each side, or thinner where it is negative.",
                ),
                io.Boolean.Input("invert", default=False, optional=True, tooltip="Exchange light and dark, for what came out dark on light."),
                io.Boolean.Input(
                    "normalize", default=False, optional=True,
                    tooltip="Stretch each result to the whole range from black to white. Drawings always are.",
                ),
            ],
            outputs=[io.Image.Output(display_name="scribbles", tooltip="For Apply SparseCtrl, or a scribble ControlNet.")],
        )  # fmt: skip

    @classmethod
    def execute(cls, images, method=LINES, threshold=0.1, thickness=0, invert=False, normalize=False) -> io.NodeOutput:
        found = scribbles(images, method, threshold, thickness=thickness, invert=invert, normalize=normalize)
        side_by_side = len(found) <= MOST_STILLS
        return io.NodeOutput(found, ui=ui.PreviewImage(found, cls=cls) if side_by_side else looping(found))
