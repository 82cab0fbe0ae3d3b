"""The node that learns the motion of a clip: Train MotionDirector."""

from __future__ import annotations

import logging
from pathlib import Path

from comfy_api.latest import io
from safetensors.torch import load_file

from ..lora.patches import MotionLora, load_lora
from ..motion.identify import FileKind
from ..trainers.checkpoint import load_state
from ..trainers.config import PRECISIONS, MotionDirectorConfig, make_config
from ..trainers.motion_director import TEMPORAL, MotionDirectorFiles, train_motion_director
from . import folders, types
from .live import LiveTraining
from .training import latent_clips
from .types import MotionDatasetSocket, MotionLoraSocket, MotionModelSocket


class TrainMotionDirector(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="DiffDirectorTrainMotionDirector",
            display_name="Train MotionDirector",
            category="DiffDirector/Training",
            description="Learns the motion of one or a few clips, apart from their looks, as a MotionLoRA. Cancel keeps what was learnt.",
            search_aliases=["motiondirector", "train motion lora", "learn motion", "ad motion director", "video lora training"],
            is_output_node=True,
            inputs=[
                io.Model.Input("model", tooltip="The SD1.5 checkpoint to train beside, the domain adapter included if there is one. It is not changed."),
                io.Clip.Input("clip", tooltip="The checkpoint's text encoder."),
                io.Vae.Input("vae", tooltip="The checkpoint's VAE."),
                MotionModelSocket.Input("motion_model", tooltip="The motion model that the motion is taught to. It is not changed."),
                MotionDatasetSocket.Input("dataset", tooltip="From Video Dataset."),
                io.String.Input("name", default="my-motion", tooltip="Name of the files in models/animatediff_motion_lora and models/loras."),
                io.Int.Input("steps", default=300, min=1, max=1000000, tooltip="In total, earlier runs of this name included. 300 are usual for one clip."),
                io.Int.Input("rank", default=64, min=1, max=1024, optional=True, tooltip="Size of the LoRA: more learns more, and keeps more of the looks."),
                io.Float.Input("learning_rate", default=5e-4, min=1e-7, max=1e-1, step=1e-6, optional=True, tooltip="How far a step goes, for the motion."),
                io.Float.Input("spatial_learning_rate", default=1e-4, min=1e-7, max=1e-1, step=1e-6, optional=True, tooltip="The same for looks."),
                io.Int.Input("batch_size", default=1, min=1, max=64, optional=True, tooltip="Clips per step. More is steadier and takes more memory."),
                io.Float.Input(
                    "debias", default=1.0, min=0.0, max=10.0, step=0.05, optional=True, advanced=True,
                    tooltip="Weight of the anchor frame in the appearance-debiased loss; 0 is the plain loss, with which looks leak into the motion.",
                ),
                io.Float.Input(
                    "spatial_probability", default=0.8, min=0.0, max=1.0, step=0.05, optional=True, advanced=True,
                    tooltip="Share of steps that train the looks as well; 0 trains no spatial LoRA.",
                ),
                io.Combo.Input(
                    "precision", options=list(PRECISIONS), default="auto", optional=True, advanced=True,
                    tooltip="What layers compute in; LoRA weights are kept in float32. auto is bfloat16 where the device is good at it.",
                ),
                io.Boolean.Input(
                    "gradient_checkpointing", default=True, optional=True, advanced=True,
                    tooltip="Less memory for more time; the result is the same.",
                ),
                io.Int.Input("save_every", default=100, min=0, max=100000, optional=True, advanced=True, tooltip="Steps between saves; 0: only at the end."),
                io.Int.Input("seed", default=0, min=0, max=2**31, optional=True, tooltip="The same seed gives the same training."),
                io.Boolean.Input("resume", default=True, optional=True, tooltip="Go on from an earlier run of the same name."),
            ],
            outputs=[
                MotionLoraSocket.Output(display_name="motion_lora", tooltip="The motion, for Apply Motion Model."),
                io.Custom("LORA_MODEL").Output(display_name="spatial_lora", tooltip="The looks, for Load LoRA Model."),
                io.Custom("LOSS_MAP").Output(display_name="loss", tooltip="The temporal path's loss at each step, for Plot Loss Graph."),
                io.String.Output(display_name="path", tooltip="Where the MotionLoRA was saved."),
            ],
            hidden=[io.Hidden.unique_id],
        )  # fmt: skip

    @classmethod
    def execute(cls, model, clip, vae, motion_model, dataset, resume=True, **settings) -> io.NodeOutput:
        config = make_config(MotionDirectorConfig, settings)
        handle = types.motion_model(motion_model)
        live = LiveTraining(cls.hidden.unique_id, config.steps)
        clips = latent_clips(dataset, model, vae, clip, live)
        temporal, spatial = (Path(folders.first_path(kind)) for kind in (folders.MOTION_LORAS, folders.LORAS))
        files = MotionDirectorFiles.in_folders(config.name, temporal, spatial)
        train_motion_director(model, handle, clips, config, files, resume=resume, on_step=live.step)
        logging.info("DiffDirector: saved %s and %s", files.temporal, files.spatial)
        layers = load_lora(str(files.temporal), files.temporal.name, FileKind.MOTION_LORA)
        loras = (MotionLora(files.temporal.name, layers, 1.0),)
        losses = [losses[TEMPORAL] for losses in load_state(files.state)["losses"]]
        return io.NodeOutput(loras, load_file(files.spatial), {"loss": losses}, str(files.temporal), ui=live.ui())
