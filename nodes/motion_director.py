"""The node that learns the motion of a clip: Train MotionDirector."""

from __future__ import annotations

import logging
from pathlib import Path

from comfy_api.latest import io
from safetensors.torch import load_file

from ..lora.patches import MotionLora, load_lora
from ..motion.identify import FileKind
from ..motion.splice import apply_motion_model
from ..trainers import host
from ..trainers.checkpoint import load_state
from ..trainers.config import MotionDirectorConfig, make_config
from ..trainers.dataset import check_captions
from ..trainers.motion_director import TEMPORAL, MotionDirectorFiles, train_motion_director
from ..trainers.optimizers import KINDS
from ..trainers.presets import CUSTOM, PRESETS
from . import folders, types
from .live import LiveTraining
from .motion_director_settings import DEFAULTS, number, whole
from .training import encoded, previewed
from .types import MotionDatasetSocket, MotionLoraSocket, MotionModelSocket, TrainingSettingsSocket


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
                io.Model.Input("model", tooltip="The SD1.5 or SDXL checkpoint to train beside, with the domain adapter if there is one. It is not changed."),
                io.Clip.Input("clip", tooltip="The checkpoint's text encoder."),
                io.Vae.Input("vae", tooltip="The checkpoint's VAE."),
                MotionModelSocket.Input("motion_model", tooltip="The motion model that the motion is taught to. It is not changed."),
                MotionDatasetSocket.Input("dataset", tooltip="From Video Dataset."),
                io.String.Input(
                    "name", default="my-motion", tooltip="Name of the files in models/animatediff_motion_lora and models/loras."
                ),
                io.Int.Input(
                    "steps", default=DEFAULTS.steps, min=1, max=1000000,
                    tooltip="In total, earlier runs of this name included. 300 are usual for one clip.",
                ),
                io.Combo.Input(
                    "preset", options=[CUSTOM, *PRESETS], default=CUSTOM, optional=True,
                    tooltip="Sets rank, batch_size and memory settings in place of those chosen: consumer is for 8 GB. Choose the same in Video Dataset.",
                ),
                whole("rank", 1, 1024, "Size of the LoRA: more learns more, and keeps more of the looks."),
                number("learning_rate", 1e-7, 1e-1, 1e-6, "How far a step goes, for the motion."),
                number("spatial_learning_rate", 1e-7, 1e-1, 1e-6, "The same for looks."),
                whole("batch_size", 1, 64, "Clips per step. More is steadier and takes more memory."),
                io.Int.Input(
                    "sample_every", default=100, min=0, max=100000, optional=True,
                    tooltip="Steps between previews, each of which takes about as long as 13 steps. 0: one at the end.",
                ),
                io.String.Input(
                    "sample_prompt", default="a panda in a forest", multiline=True, optional=True,
                    tooltip="What previews show: something else than the clip, to see the motion alone. Empty: none, and sample is a black picture.",
                ),
                io.Combo.Input(
                    "optimizer", options=list(KINDS), default=DEFAULTS.optimizer, optional=True,
                    tooltip="Lion takes a tenth of the learning rates by itself; Prodigy finds them. All but AdamW need a package, which the message names.",
                ),
                whole("save_every", 0, 100000, "Steps between saves; 0: only at the end."),
                io.Int.Input(
                    "seed", default=0, min=0, max=2**31, control_after_generate=False, optional=True,
                    tooltip="The same seed gives the same training, and a further run goes on from this one.",
                ),
                io.Boolean.Input("resume", default=True, optional=True, tooltip="Go on from an earlier run of the same name."),
                TrainingSettingsSocket.Input("settings", optional=True, tooltip="The finer settings, from MotionDirector Settings."),
            ],
            outputs=[
                MotionLoraSocket.Output(display_name="motion_lora", tooltip="The motion, for Apply Motion Model."),
                io.Custom("LORA_MODEL").Output(display_name="spatial_lora", tooltip="The looks, for Load LoRA Model."),
                io.Custom("LOSS_MAP").Output(display_name="loss", tooltip="The temporal path's loss at each step, for Plot Loss Graph."),
                io.Image.Output(display_name="sample", tooltip="The frames of the last preview."),
                io.String.Output(display_name="path", tooltip="Where the MotionLoRA was saved."),
            ],
            hidden=[io.Hidden.unique_id, io.Hidden.extra_pnginfo],
        )  # fmt: skip

    @classmethod
    def execute(
        cls, model, clip, vae, motion_model, dataset, preset=CUSTOM, sample_every=100, sample_prompt="", resume=True,
        settings=None, **chosen,
    ) -> io.NodeOutput:  # fmt: skip
        in_preset = {} if preset == CUSTOM else PRESETS[preset].training
        config = make_config(MotionDirectorConfig, {**types.training_settings(settings), **chosen, **in_preset})
        handle, sources = types.motion_model(motion_model), types.motion_dataset(dataset)
        temporal, spatial = (Path(folders.first_path(kind)) for kind in (folders.MOTION_LORAS, folders.LORAS))
        files = MotionDirectorFiles.in_folders(config.name, temporal, spatial)
        check_captions(sources)
        files.check_writable()
        apply_motion_model(model, handle)  # what does not fit is said before the clips are encoded
        live = LiveTraining(cls.hidden, config.steps)
        clips = encoded(sources, model, vae, clip, live)
        previews, shown = previewed(sample_prompt, sample_every, config, sources, clips, clip, vae, live)
        host.unload(vae.patcher, clip.patcher)
        if resume and files.state.exists():
            live.earlier(load_state(files.state)["losses"])
        train_motion_director(model, handle, clips, config, files, resume=resume, previews=previews, on_step=live.step)
        logging.info("DiffDirector: saved %s and %s", files.temporal, files.spatial)
        layers = load_lora(str(files.temporal), files.temporal.name, FileKind.MOTION_LORA)
        loras = (MotionLora(files.temporal.name, layers, 1.0),)
        losses = [losses[TEMPORAL] for losses in load_state(files.state)["losses"]]
        return io.NodeOutput(
            loras, load_file(files.spatial), {"loss": losses}, shown[-1], str(files.temporal), ui=live.ui()
        )
