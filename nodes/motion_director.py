"""The node that learns the motion of a clip: Train MotionDirector."""

from __future__ import annotations

import logging
from pathlib import Path

import torch
from comfy_api.latest import io
from safetensors.torch import load_file

from ..lora.patches import MotionLora, load_lora
from ..motion.identify import FileKind
from ..motion.splice import apply_motion_model
from ..trainers import host
from ..trainers.checkpoint import load_state
from ..trainers.config import PRECISIONS, SCHEDULES, MotionDirectorConfig, make_config
from ..trainers.dataset import check_captions
from ..trainers.motion_director import TEMPORAL, MotionDirectorFiles, train_motion_director
from ..trainers.optimizers import KINDS
from ..trainers.presets import CUSTOM, PRESETS
from ..trainers.sampling import FRAME_RATE, Previews
from . import folders, types
from .live import LiveTraining
from .training import encoded
from .types import MotionDatasetSocket, MotionLoraSocket, MotionModelSocket

DEFAULTS = MotionDirectorConfig("defaults")
NO_SAMPLE = torch.zeros(1, 64, 64, 3)


def whole(name: str, least: int, most: int, tooltip: str, advanced: bool = False) -> io.Int.Input:
    """An optional setting of the config; so are the next two."""
    return io.Int.Input(
        name, default=getattr(DEFAULTS, name), min=least, max=most, optional=True, advanced=advanced, tooltip=tooltip
    )


def number(name: str, least: float, most: float, step: float, tooltip: str, advanced: bool = False) -> io.Float.Input:
    return io.Float.Input(
        name,
        default=getattr(DEFAULTS, name),
        min=least,
        max=most,
        step=step,
        optional=True,
        advanced=advanced,
        tooltip=tooltip,
    )


def targets(name: str, tooltip: str) -> io.String.Input:
    return io.String.Input(
        name, default=", ".join(getattr(DEFAULTS, name)), optional=True, advanced=True, tooltip=tooltip
    )


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
                    tooltip="Sets rank, batch_size and memory settings in place of those below: consumer is for 8 GB. Choose the same in Video Dataset.",
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
                    "optimizer", options=list(KINDS), default=DEFAULTS.optimizer, optional=True, advanced=True,
                    tooltip="Lion takes a tenth of the learning rates by itself; Prodigy finds them. All but AdamW need a package, which the message names.",
                ),
                io.Combo.Input(
                    "lr_schedule", options=list(SCHEDULES), default=DEFAULTS.lr_schedule, optional=True, advanced=True,
                    tooltip="cosine lowers the learning rates to zero at the last step.",
                ),
                whole("warmup_steps", 0, 100000, "Steps over which the learning rates rise from zero.", advanced=True),
                whole("accumulate", 1, 1024, "Batches per step: the effect of a larger batch without its memory.", advanced=True),
                number("alpha", 0.0, 1024.0, 1.0, "While it is trained the LoRA is scaled by alpha / rank; 0: by 1.", advanced=True),
                number("dropout", 0.0, 0.9, 0.05, "Share of the LoRA's inputs left out at random, against learning by heart.", advanced=True),
                number("debias", 0.0, 10.0, 0.05, "Weight of the anchor frame in the appearance-debiased loss; 0: looks leak into it.", advanced=True),
                number("spatial_probability", 0.0, 1.0, 0.05, "Share of steps that train the looks as well; 0 trains no spatial LoRA.", advanced=True),
                targets("temporal_targets", "Layers of the motion model that get the LoRA: those whose name ends in one of these."),
                targets("spatial_targets", "The same for the checkpoint's layers."),
                number("min_snr_gamma", 0.0, 100.0, 0.5, "Weighs clear samples less; 5 is common, 0 is off.", advanced=True),
                number("truncated_snr_cap", 0.0, 1000.0, 1.0, "Weighs noisy samples, where motion is decided, up to so much more; 0 is off.", advanced=True),
                number("timestep_bias", 0.0, 10.0, 0.1, "Draws noisy timesteps more often; 0: all the same.", advanced=True),
                number("noise_offset", 0.0, 1.0, 0.01, "Teaches very dark and bright clips; 0.1 is common, 0 is off.", advanced=True),
                number("caption_dropout", 0.0, 0.9, 0.05, "Share of steps without a caption.", advanced=True),
                number("max_grad_norm", 0.01, 1000.0, 0.1, "Longer gradients are shortened to this.", advanced=True),
                number("ema_decay", 0.0, 0.9999, 0.0001, "Save a moving average of the weights; 0.99 is common, 0 is off.", advanced=True),
                whole("held_out", 0, 1000, "So many clips are not trained on: their loss tells learning the motion from learning by heart.", advanced=True),
                whole("validate_every", 1, 100000, "Steps between measurements of that loss.", advanced=True),
                io.Combo.Input(
                    "precision", options=list(PRECISIONS), default=DEFAULTS.precision, optional=True, advanced=True,
                    tooltip="What layers compute in; LoRA weights are kept in float32. auto is bfloat16 where the device is good at it.",
                ),
                io.Boolean.Input(
                    "gradient_checkpointing", default=True, optional=True, advanced=True,
                    tooltip="Less memory for more time; the result is the same.",
                ),
                io.Boolean.Input(
                    "tensorboard", default=False, optional=True, advanced=True,
                    tooltip="Write logs for TensorBoard beside the MotionLoRA; needs pip install tensorboard.",
                ),
                whole("save_every", 0, 100000, "Steps between saves; 0: only at the end.", advanced=True),
                io.Int.Input(
                    "seed", default=0, min=0, max=2**31, control_after_generate=False, optional=True,
                    tooltip="The same seed gives the same training, and a further run goes on from this one.",
                ),
                io.Boolean.Input("resume", default=True, optional=True, tooltip="Go on from an earlier run of the same name."),
            ],
            outputs=[
                MotionLoraSocket.Output(display_name="motion_lora", tooltip="The motion, for Apply Motion Model."),
                io.Custom("LORA_MODEL").Output(display_name="spatial_lora", tooltip="The looks, for Load LoRA Model."),
                io.Custom("LOSS_MAP").Output(display_name="loss", tooltip="The temporal path's loss at each step, for Plot Loss Graph."),
                io.Image.Output(display_name="sample", tooltip="The frames of the last preview."),
                io.String.Output(display_name="path", tooltip="Where the MotionLoRA was saved."),
            ],
            hidden=[io.Hidden.unique_id],
        )  # fmt: skip

    @classmethod
    def execute(
        cls, model, clip, vae, motion_model, dataset, preset=CUSTOM, sample_every=100, sample_prompt="", resume=True, **settings
    ) -> io.NodeOutput:  # fmt: skip
        config = motion_director_config(preset, settings)
        handle, sources = types.motion_model(motion_model), types.motion_dataset(dataset)
        temporal, spatial = (Path(folders.first_path(kind)) for kind in (folders.MOTION_LORAS, folders.LORAS))
        files = MotionDirectorFiles.in_folders(config.name, temporal, spatial)
        check_captions(sources)
        files.check_writable()
        apply_motion_model(model, handle)  # what does not fit is said before the clips are encoded
        live = LiveTraining(cls.hidden.unique_id, config.steps)
        clips = encoded(sources, model, vae, clip, live)
        samples: list[torch.Tensor] = []

        def on_sample(images: torch.Tensor, step: int) -> None:
            samples[:] = [images]
            live.sample(images, step, sample_prompt, FRAME_RATE)

        previews = None
        if sample_prompt.strip():
            previews = Previews.of(
                sample_prompt, clip, vae, every=sample_every, seed=config.seed, frames=clips.frames, width=clips.width,
                height=clips.height, before=lambda: live.phase("sampling a preview"), on_sample=on_sample,
            )  # fmt: skip
        host.unload(vae.patcher, clip.patcher)
        if resume and files.state.exists():
            live.earlier(load_state(files.state)["losses"])
        train_motion_director(model, handle, clips, config, files, resume=resume, previews=previews, on_step=live.step)
        logging.info("DiffDirector: saved %s and %s", files.temporal, files.spatial)
        layers = load_lora(str(files.temporal), files.temporal.name, FileKind.MOTION_LORA)
        loras = (MotionLora(files.temporal.name, layers, 1.0),)
        losses = [losses[TEMPORAL] for losses in load_state(files.state)["losses"]]
        sample = samples[0] if samples else NO_SAMPLE
        return io.NodeOutput(
            loras, load_file(files.spatial), {"loss": losses}, sample, str(files.temporal), ui=live.ui()
        )


def motion_director_config(preset: str, settings: dict) -> MotionDirectorConfig:
    """settings as the node has them, with those of preset in place of its own."""
    for key in ("temporal_targets", "spatial_targets"):
        if key in settings:
            settings[key] = [part.strip() for part in settings[key].split(",") if part.strip()]
    chosen = {} if preset == CUSTOM else PRESETS[preset].training
    return make_config(MotionDirectorConfig, {**settings, **chosen})
