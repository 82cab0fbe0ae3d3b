"""The node that trains motion modules, and what it shares with other training nodes."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from pathlib import Path

import folder_paths
import torch
from comfy_api.latest import io

from ..motion.module import load_motion_model
from ..motion.splice import check_checkpoint
from ..trainers import host
from ..trainers.checkpoint import check_writable
from ..trainers.config import PRECISIONS, MotionModuleConfig, TrainConfig, make_config
from ..trainers.dataset import Clip, Encoder, LatentClips, encode_clips
from ..trainers.motion_module import check_length, train_motion_module
from ..trainers.sampling import FRAME_RATE, Previews
from . import folders, types
from .live import LiveTraining
from .progress import progress
from .types import MotionDatasetSocket, MotionModelSocket

NO_SAMPLE = torch.zeros(1, 64, 64, 3)


def samples_and_validation(prompt: str, previews: str) -> list[io.Input]:
    """What tells how good a training is, for nodes whose other inputs were there first. previews: what they show."""
    return [
        io.Int.Input("sample_every", default=500, min=0, max=100000, optional=True, tooltip="Steps between previews. 0: one at the end."),
        io.String.Input("sample_prompt", default=prompt, multiline=True, optional=True, tooltip=previews),
        io.Int.Input(
            "held_out", default=0, min=0, max=1000, optional=True, advanced=True,
            tooltip="So many clips are not trained on; the weights with which their loss was lowest are kept as <name>.best.",
        ),
        io.Int.Input(
            "validate_every", default=50, min=1, max=100000, optional=True, advanced=True,
            tooltip="Steps between measurements of that loss.",
        ),
    ]  # fmt: skip


class TrainMotionModule(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="DiffDirectorTrainMotionModule",
            display_name="Train Motion Module",
            category="DiffDirector/Training",
            description="Trains a motion module on videos, from nothing or from a motion model. Cancel keeps what was learnt.",
            search_aliases=["train animatediff", "finetune motion model", "motion training"],
            is_output_node=True,
            inputs=[
                io.Model.Input("model", tooltip="The SD1.5 checkpoint to train beside. It is not changed."),
                io.Clip.Input("clip", tooltip="The checkpoint's text encoder."),
                io.Vae.Input("vae", tooltip="The checkpoint's VAE."),
                MotionDatasetSocket.Input("dataset", tooltip="From Video Dataset."),
                io.String.Input(
                    "name", default="my-motion-module", tooltip="Name of the file in models/animatediff_models."
                ),
                io.Int.Input("steps", default=1000, min=1, max=1000000, tooltip="Optimizer steps in total, earlier runs of this name included."),
                MotionModelSocket.Input("motion_model", optional=True, tooltip="The motion model to start from. Without one a new one is made."),
                io.Float.Input("learning_rate", default=1e-4, min=1e-7, max=1e-1, step=1e-6, optional=True, tooltip="How far each step goes."),
                io.Int.Input("batch_size", default=1, min=1, max=64, optional=True, tooltip="Clips per step. More is steadier and takes more memory."),
                io.String.Input(
                    "trainable",
                    default="motion_modules.",
                    optional=True,
                    advanced=True,
                    tooltip="Only weights whose name contains one of these words (separated by commas) are trained.",
                ),
                io.Float.Input(
                    "image_fraction",
                    default=0.0,
                    min=0.0,
                    max=0.9,
                    step=0.05,
                    optional=True,
                    advanced=True,
                    tooltip="Share of steps on single pictures, so that the module learns to leave pictures alone.",
                ),
                io.Float.Input(
                    "ema_decay",
                    default=0.0,
                    min=0.0,
                    max=0.9999,
                    step=0.0001,
                    optional=True,
                    advanced=True,
                    tooltip="Save a moving average of the weights instead of the last ones; 0.999 is common, 0 is off.",
                ),
                io.Combo.Input(
                    "precision",
                    options=list(PRECISIONS),
                    default="auto",
                    optional=True,
                    advanced=True,
                    tooltip="What layers compute in; weights are kept in float32. auto is bfloat16 where the device is good at it.",
                ),
                io.Int.Input("save_every", default=500, min=0, max=100000, optional=True, advanced=True, tooltip="Steps between saves; 0: only at the end."),
                io.Int.Input(
                    "seed", default=0, min=0, max=2**31, control_after_generate=False, optional=True,
                    tooltip="The same seed gives the same training, and a further run goes on from this one.",
                ),
                io.Boolean.Input("resume", default=True, optional=True, tooltip="Go on from an earlier run of the same name."),
                io.Int.Input(
                    "max_frames", default=0, min=0, max=1024, optional=True, advanced=True,
                    tooltip="The longest clip it can ever see. 0: as motion_model, 32 for a new one. More than motion_model's continues its encoding.",
                ),
                *samples_and_validation("a panda in a forest", "What previews show. Empty: none, and sample is a black picture."),
            ],
            outputs=[
                MotionModelSocket.Output(display_name="motion_model", tooltip="The trained motion model."),
                io.String.Output(display_name="path", tooltip="Where it was saved."),
                io.Image.Output(display_name="sample", tooltip="What the last preview shows."),
            ],
            hidden=[io.Hidden.unique_id, io.Hidden.extra_pnginfo],
        )  # fmt: skip

    @classmethod
    def execute(
        cls, model, clip, vae, dataset, motion_model=None, resume=True, trainable="motion_modules.", sample_every=0,
        sample_prompt="", **settings,
    ) -> io.NodeOutput:  # fmt: skip
        parts = tuple(part.strip() for part in trainable.split(",") if part.strip())
        config = make_config(MotionModuleConfig, settings | {"trainable": parts})
        folder = Path(folders.first_path(folders.MOTION_MODELS))
        check_writable(folder)
        check_checkpoint(model)
        start_from = None if motion_model is None else types.motion_model(motion_model)
        sources = types.motion_dataset(dataset)
        check_length(max(source.frames for source in sources), config, start_from)
        live = LiveTraining(cls.hidden, config.steps)
        clips = encoded(sources, model, vae, clip, live)
        previews, shown = previewed(sample_prompt, sample_every, config, sources, clips, clip, vae, live)
        host.unload(vae.patcher, clip.patcher)
        path = train_motion_module(
            model,
            clips,
            config,
            folder,
            start_from=start_from,
            resume=resume,
            on_step=live.step,
            previews=previews,
        )
        logging.info("DiffDirector: saved %s", path)
        return io.NodeOutput(load_motion_model(str(path)), str(path), shown[-1], ui=live.ui())


def encoded(
    sources: Sequence[Clip], model, vae, clip, live: LiveTraining,
    wanted: Callable[[Encoder], Encoder] = lambda encoder: encoder,
) -> LatentClips:  # fmt: skip
    """What a training node trains on, with the host's progress bar; computed once and kept in the user's folder.

    wanted: makes of the host's encoder the one that gives what is wanted of a clip.
    """
    bar = progress(len(sources))
    cache = Path(folder_paths.get_user_directory()) / "diffdirector"

    def on_clip(done: int, total: int) -> None:
        live.phase(f"encoding clips {done}/{total}")
        bar(done)

    live.phase(f"encoding clips 0/{len(sources)}")
    clips = encode_clips(sources, wanted(host.encoder(model, vae, clip)), cache, on_clip)
    live.phase("preparing")
    return clips


def previewed(
    prompt: str, every: int, config: TrainConfig, sources: Sequence[Clip], clips: LatentClips, clip, vae, live: LiveTraining,
    frames: int = 0,
) -> tuple[Previews | None, list[torch.Tensor]]:  # fmt: skip
    """Previews, None for an empty prompt, which the node shows; and what the last one of the list shows, images [frames, h, w, 3].

    frames: of a preview; 0: as many as the clips have.
    """
    shown = [NO_SAMPLE]

    def on_sample(images: torch.Tensor, step: int) -> None:
        shown[:] = [images]
        live.sample(images, step, prompt, FRAME_RATE)

    if not prompt.strip():
        return None, shown
    previews = Previews.of(
        prompt, clip, vae, sources, every=every, seed=config.seed, frames=frames or clips.frames, width=clips.width,
        height=clips.height, before=lambda: live.phase("sampling a preview"), on_sample=on_sample,
    )  # fmt: skip
    return previews, shown
