"""The nodes that train one LoRA each: Train Domain Adapter, Train Motion LoRA."""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from comfy_api.latest import io
from safetensors.torch import load_file

from ..lora.patches import MotionLora, load_lora
from ..motion.identify import FileKind
from ..motion.module import MotionModelHandle
from ..trainers import host
from ..trainers.checkpoint import load_state
from ..trainers.config import (
    PRECISIONS,
    SCHEDULES,
    DomainAdapterConfig,
    LoraConfig,
    MotionLoraConfig,
    make_config,
)
from ..trainers.dataset import check_captions
from ..trainers.domain_adapter import train_domain_adapter
from ..trainers.lora_training import LoraFiles, check_models
from ..trainers.motion_lora import train_motion_lora
from ..trainers.optimizers import KINDS
from . import folders, types
from .live import LiveTraining
from .training import encoded, previewed
from .types import MotionDatasetSocket, MotionLoraSocket, MotionModelSocket

ADAPTER, MOTION_LORA = DomainAdapterConfig("defaults"), MotionLoraConfig("defaults")


def steps_and_options(defaults: LoraConfig, usual: str, previews: str) -> list[io.Input]:
    """What both nodes have after their models, dataset and name. usual: what steps are; previews: what they show."""

    def number(
        name: str, least: float, most: float, step: float, tooltip: str, advanced: bool = False
    ) -> io.Float.Input:
        return io.Float.Input(
            name, default=getattr(defaults, name), min=least, max=most, step=step, optional=True, advanced=advanced, tooltip=tooltip
        )  # fmt: skip

    def whole(name: str, least: int, most: int, tooltip: str, advanced: bool = False) -> io.Int.Input:
        return io.Int.Input(
            name, default=getattr(defaults, name), min=least, max=most, optional=True, advanced=advanced, tooltip=tooltip
        )  # fmt: skip

    return [
        io.Int.Input(
            "steps", default=defaults.steps, min=1, max=1000000, tooltip=f"In total, earlier runs of this name included. {usual}"
        ),
        whole("rank", 1, 1024, "Size of the LoRA: more learns more, and takes more memory and disk."),
        number("learning_rate", 1e-7, 1e-1, 1e-6, "How far each step goes."),
        whole("batch_size", 1, 64, "Clips per step. More is steadier and takes more memory."),
        io.Int.Input(
            "sample_every", default=100, min=0, max=100000, optional=True, tooltip="Steps between previews. 0: one at the end."
        ),
        io.String.Input("sample_prompt", default="a panda in a forest", multiline=True, optional=True, tooltip=previews),
        io.Combo.Input(
            "optimizer", options=list(KINDS), default=defaults.optimizer, optional=True,
            tooltip="Lion takes a tenth of the learning rate by itself; Prodigy finds it. All but AdamW need a package, which the message names.",
        ),
        whole("save_every", 0, 100000, "Steps between saves; 0: only at the end."),
        io.Int.Input(
            "seed", default=0, min=0, max=2**31, control_after_generate=False, optional=True,
            tooltip="The same seed gives the same training, and a further run goes on from this one.",
        ),
        io.Boolean.Input("resume", default=True, optional=True, tooltip="Go on from an earlier run of the same name."),
        io.Combo.Input(
            "lr_schedule", options=list(SCHEDULES), default=defaults.lr_schedule, optional=True, advanced=True,
            tooltip="cosine lowers the learning rate to zero at the last step.",
        ),
        number("dropout", 0.0, 0.9, 0.05, "Share of the LoRA's inputs left out at random, against learning by heart.", advanced=True),
        number("truncated_snr_cap", 0.0, 1000.0, 1.0, "Weighs noisy samples up to so much more; 0 is off.", advanced=True),
        number("timestep_bias", 0.0, 10.0, 0.1, "Draws noisy timesteps more often; 0: all the same.", advanced=True),
        whole("held_out", 0, 1000, "So many clips are not trained on: their loss tells learning from learning by heart.", advanced=True),
        whole("validate_every", 1, 100000, "Steps between measurements of that loss.", advanced=True),
        io.Combo.Input(
            "precision", options=list(PRECISIONS), default=defaults.precision, optional=True, advanced=True,
            tooltip="What layers compute in; LoRA weights are kept in float32. auto is bfloat16 where the device is good at it.",
        ),
        io.Boolean.Input(
            "gradient_checkpointing", default=True, optional=True, advanced=True,
            tooltip="Less memory for more time; the result is the same.",
        ),
    ]  # fmt: skip


def further_outputs() -> list[io.Output]:
    return [
        io.Custom("LOSS_MAP").Output(display_name="loss", tooltip="The loss of each step, for Plot Loss Graph."),
        io.Image.Output(display_name="sample", tooltip="What the last preview shows."),
        io.String.Output(display_name="path", tooltip="Where it was saved."),
    ]


class TrainDomainAdapter(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="DiffDirectorTrainDomainAdapter",
            display_name="Train Domain Adapter",
            category="DiffDirector/Training",
            description="Learns how frames of videos look, as a LoRA to take away again (AnimateDiff's stage 1). Cancel keeps what was learnt.",
            search_aliases=["train adapter", "train v3 adapter", "image lora of video frames", "animatediff stage 1", "domain gap"],
            is_output_node=True,
            inputs=[
                io.Model.Input("model", tooltip="The SD1.5 or SDXL checkpoint to train beside, without a motion model. It is not changed."),
                io.Clip.Input("clip", tooltip="The checkpoint's text encoder."),
                io.Vae.Input("vae", tooltip="The checkpoint's VAE."),
                MotionDatasetSocket.Input("dataset", tooltip="From Video Dataset. Each step sees random single frames of its clips."),
                io.String.Input("name", default="my-adapter", tooltip="Name of the file in models/loras."),
                *steps_and_options(
                    ADAPTER, "A few thousand for hundreds of videos.",
                    "A picture of this is shown now and then, with the adapter. Empty: none, and sample is a black picture.",
                ),
            ],
            outputs=[
                io.Custom("LORA_MODEL").Output(display_name="adapter", tooltip="The adapter, for Load LoRA Model."),
                *further_outputs(),
            ],
            hidden=[io.Hidden.unique_id, io.Hidden.extra_pnginfo],
        )  # fmt: skip

    @classmethod
    def execute(cls, model, clip, vae, dataset, **settings) -> io.NodeOutput:
        node = _Node(cls.hidden, model, clip, vae, dataset, None)
        file, found = _trained(
            node, DomainAdapterConfig, folders.LORAS, partial(train_domain_adapter, model), 1, **settings
        )
        return io.NodeOutput(load_file(file), *found.outputs, ui=found.live.ui())


class TrainMotionLora(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="DiffDirectorTrainMotionLora",
            display_name="Train Motion LoRA",
            category="DiffDirector/Training",
            description="Learns a motion that clips have in common, such as a camera's, as a MotionLoRA (AnimateDiff's stage 3). Cancel keeps what was learnt.",
            search_aliases=["train motionlora", "train camera lora", "camera motion training", "zoom lora", "pan lora", "animatediff stage 3"],
            is_output_node=True,
            inputs=[
                io.Model.Input("model", tooltip="The SD1.5 or SDXL checkpoint to train beside, with the domain adapter if there is one. It is not changed."),
                io.Clip.Input("clip", tooltip="The checkpoint's text encoder."),
                io.Vae.Input("vae", tooltip="The checkpoint's VAE."),
                MotionModelSocket.Input("motion_model", tooltip="The motion model that the motion is taught to. It is not changed."),
                MotionDatasetSocket.Input(
                    "dataset", tooltip="From Video Dataset: 20 to 50 clips that move alike. Its camera setting makes them of any footage, photographs too.",
                ),
                io.String.Input("name", default="my-camera-move", tooltip="Name of the file in models/animatediff_motion_lora."),
                *steps_and_options(
                    MOTION_LORA, "2000 are usual for 20 to 50 clips.",
                    "What previews show: best something else than the clips. Empty: none, and sample is a black picture.",
                ),
            ],
            outputs=[
                MotionLoraSocket.Output(display_name="motion_lora", tooltip="The motion, for Apply Motion Model."),
                *further_outputs(),
            ],
            hidden=[io.Hidden.unique_id, io.Hidden.extra_pnginfo],
        )  # fmt: skip

    @classmethod
    def execute(cls, model, clip, vae, motion_model, dataset, **settings) -> io.NodeOutput:
        handle = types.motion_model(motion_model)
        node = _Node(cls.hidden, model, clip, vae, dataset, handle)
        train = partial(train_motion_lora, model, handle)
        file, found = _trained(node, MotionLoraConfig, folders.MOTION_LORAS, train, 0, **settings)
        lora = MotionLora(file.name, load_lora(str(file), file.name, FileKind.MOTION_LORA), 1.0)
        return io.NodeOutput((lora,), *found.outputs, ui=found.live.ui())


class _Node(NamedTuple):
    hidden: Any
    model: Any
    clip: Any
    vae: Any
    dataset: object
    motion_model: MotionModelHandle | None


class _Found(NamedTuple):
    """outputs: those of further_outputs()."""

    outputs: tuple[dict[str, list[float]], torch.Tensor, str]
    live: LiveTraining


def _trained(
    node: _Node, kind: type[LoraConfig], folder: str, train: Callable[..., Path], frames: int,
    sample_every: int = 100, sample_prompt: str = "", resume: bool = True, **settings: Any,
) -> tuple[Path, _Found]:  # fmt: skip
    """The file that train wrote, and what is known about it. frames: of a preview; 0: as many as the clips have."""
    config, sources = make_config(kind, settings), types.motion_dataset(node.dataset)
    files = LoraFiles.of_one(config.name, Path(folders.first_path(folder)))
    check_captions(sources)
    files.check_writable()
    check_models(node.model, node.motion_model)
    live = LiveTraining(node.hidden, config.steps)
    clips = encoded(sources, node.model, node.vae, node.clip, live)
    previews, shown = previewed(sample_prompt, sample_every, config, sources, clips, node.clip, node.vae, live, frames)
    host.unload(node.vae.patcher, node.clip.patcher)
    if resume and files.state.exists():
        live.earlier(load_state(files.state)["losses"])
    file = train(clips, config, files, resume=resume, previews=previews, on_step=live.step)
    logging.info("DiffDirector: saved %s", file)
    losses = [step["loss"] for step in load_state(files.state)["losses"]]
    return file, _Found(({"loss": losses}, shown[-1], str(file)), live)
