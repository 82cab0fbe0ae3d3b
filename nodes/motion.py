"""Nodes that change a MODEL: Apply Motion Model, Domain Adapter."""

from __future__ import annotations

import logging
from collections.abc import Callable

from comfy_api.latest import io
from server import PromptServer

from ..lora.patches import apply_domain_adapter, load_lora, with_motion_loras
from ..motion.identify import FileKind
from ..motion.schedules import AUTO, CHOICES
from ..motion.splice import GROUP_NORMS, NORM_AUTO, apply_motion_model
from . import folders, types
from .preview import preview_moving
from .types import MotionLoraSocket, MotionModelSocket, MotionStrengthSocket


class ApplyMotionModel(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="DiffDirectorApplyMotionModel",
            display_name="Apply Motion Model",
            category="DiffDirector",
            description="Animates a checkpoint: every latent of the batch becomes one frame of a clip. Works with every sampler.",
            search_aliases=[
                "animatediff",
                "animate",
                "apply animatediff model",
                "motion module",
                "video",
                "evolved sampling",
            ],
            inputs=[
                io.Model.Input(
                    "model",
                    tooltip="An SD1.5 or SDXL checkpoint, LoRAs included. Apply several motion models one after the other to add them up.",
                ),
                MotionModelSocket.Input(
                    "motion_model", tooltip="From Load Motion Model; of the same family as the checkpoint."
                ),
                io.Combo.Input(
                    "beta_schedule",
                    options=CHOICES,
                    default=AUTO,
                    optional=True,
                    tooltip="The noise schedule. auto: the one the motion model was trained with. use existing: leave the model's own.",
                ),
                MotionLoraSocket.Input(
                    "motion_lora", optional=True, tooltip="Camera moves and trained motions, from Motion LoRA."
                ),
                io.Float.Input(
                    "strength",
                    default=1.0,
                    min=0.0,
                    max=10.0,
                    step=0.01,
                    optional=True,
                    tooltip="How much of the motion model's effect is added. 0: still pictures that have nothing to do with each other; 1: as trained.",
                ),
                io.Float.Input(
                    "start_percent",
                    default=0.0,
                    min=0.0,
                    max=1.0,
                    step=0.001,
                    optional=True,
                    tooltip="Part of the sampling after which the motion model sets in.",
                ),
                io.Float.Input(
                    "end_percent",
                    default=1.0,
                    min=0.0,
                    max=1.0,
                    step=0.001,
                    optional=True,
                    tooltip="Part of the sampling after which the motion model stops.",
                ),
                MotionStrengthSocket.Input(
                    "motion_strength",
                    optional=True,
                    tooltip="From Motion Strength: over the frames, the sampling and the picture, and block by block.",
                ),
                io.Int.Input(
                    "stretch_to_frames",
                    default=0,
                    min=0,
                    max=1024,
                    optional=True,
                    advanced=True,
                    tooltip="Stretch the positional encoding over this many frames, for clips longer than the motion model was trained on; "
                    "movement gets slower. 0: used as stored.",
                ),
                io.Combo.Input(
                    "group_norm",
                    options=GROUP_NORMS,
                    default=NORM_AUTO,
                    optional=True,
                    advanced=True,
                    tooltip="How the checkpoint's group norms see a clip. auto: as the motion model's authors do (v1, HotShot-XL and PIA across the "
                    "frames, others frame by frame). The last option gives the look that AnimateDiff-Evolved gives v1 models.",
                ),
            ],
            outputs=[io.Model.Output(tooltip="Connect it to any sampler, with a batch of latents: one per frame.")],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def execute(
        cls,
        model,
        motion_model,
        beta_schedule=AUTO,
        motion_lora=None,
        strength=1.0,
        start_percent=0.0,
        end_percent=1.0,
        motion_strength=None,
        stretch_to_frames=0,
        group_norm=NORM_AUTO,
    ) -> io.NodeOutput:
        handle = with_motion_loras(types.motion_model(motion_model), types.motion_loras(motion_lora))
        animated = apply_motion_model(
            model,
            handle,
            beta_schedule=beta_schedule,
            strength=strength,
            start_percent=start_percent,
            end_percent=end_percent,
            group_norm=group_norm,
            stretch_to=stretch_to_frames,
            strengths=types.motion_strengths(motion_strength),
            warn=warn_on_node(cls.hidden.unique_id),
        )
        preview_moving(animated)
        return io.NodeOutput(animated)


class DomainAdapter(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="DiffDirectorDomainAdapter",
            display_name="Domain Adapter",
            category="DiffDirector",
            description="Applies the domain adapter of AnimateDiff v3, the LoRA that its motion model was trained beside.",
            search_aliases=["v3 adapter", "v3_sd15_adapter", "animatediff adapter", "adapter lora"],
            inputs=[
                io.Model.Input("model", tooltip="An SD1.5 checkpoint, before or after Apply Motion Model."),
                io.Combo.Input(
                    "adapter_name", options=folders.names(folders.LORAS), tooltip="v3_sd15_adapter, in models/loras."
                ),
                io.Float.Input(
                    "strength",
                    default=1.0,
                    min=-10.0,
                    max=10.0,
                    step=0.05,
                    tooltip="1: the look of the video the motion model was trained on. 0: removed. Lower it when colours or details suffer.",
                ),
            ],
            outputs=[io.Model.Output(tooltip="The model with the adapter.")],
        )

    @classmethod
    def execute(cls, model, adapter_name: str, strength: float) -> io.NodeOutput:
        layers = load_lora(folders.path_of(folders.LORAS, adapter_name), adapter_name, FileKind.SPATIAL_LORA)
        return io.NodeOutput(apply_domain_adapter(model, adapter_name, layers, strength))


# Tabs and their nodes that show a warning. An empty text takes room in a node, too: only these are given one.
_warned: set[tuple[str | None, str]] = set()


def warn_on_node(node_id: str | None) -> Callable[[str], None]:
    """Warnings that come up while a sampler runs: into the log and onto the node; an empty one clears the node."""

    def warn(message: str) -> None:
        if message:
            logging.warning("DiffDirector: %s", message)
        server = getattr(PromptServer, "instance", None)
        if node_id is None or server is None:
            return
        place = (server.client_id, node_id)
        if message or place in _warned:
            # To the tab that runs the graph only; the front end keeps the last text and ignores an empty one.
            server.send_progress_text(message or " ", node_id, server.client_id)
        (_warned.add if message else _warned.discard)(place)

    return warn
