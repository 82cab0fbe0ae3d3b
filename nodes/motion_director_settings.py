"""What few change of a MotionDirector training, on a node of its own so that the training node stays short."""

from __future__ import annotations

from comfy_api.latest import io

from ..trainers.config import PRECISIONS, SCHEDULES, MotionDirectorConfig
from .types import TrainingSettingsSocket

DEFAULTS = MotionDirectorConfig("defaults")


def whole(name: str, least: int, most: int, tooltip: str) -> io.Int.Input:
    """An optional setting of the config, with its default; so are the next two."""
    return io.Int.Input(name, default=getattr(DEFAULTS, name), min=least, max=most, optional=True, tooltip=tooltip)


def number(name: str, least: float, most: float, step: float, tooltip: str) -> io.Float.Input:
    return io.Float.Input(
        name, default=getattr(DEFAULTS, name), min=least, max=most, step=step, optional=True, tooltip=tooltip
    )


def targets(name: str, tooltip: str) -> io.String.Input:
    return io.String.Input(name, default=", ".join(getattr(DEFAULTS, name)), optional=True, tooltip=tooltip)


class MotionDirectorSettings(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="DiffDirectorMotionDirectorSettings",
            display_name="MotionDirector Settings",
            category="DiffDirector/Training",
            description="The finer settings of Train MotionDirector: schedule, loss, layers, memory. Without it they are as they are here at first.",
            search_aliases=["training settings", "training options", "loss weighting", "lora targets", "gradient checkpointing"],
            inputs=[
                io.Combo.Input(
                    "lr_schedule", options=list(SCHEDULES), default=DEFAULTS.lr_schedule, optional=True,
                    tooltip="cosine lowers the learning rates to zero at the last step.",
                ),
                whole("warmup_steps", 0, 100000, "Steps over which the learning rates rise from zero."),
                whole("accumulate", 1, 1024, "Batches per step: the effect of a larger batch without its memory."),
                number("alpha", 0.0, 1024.0, 1.0, "While it is trained the LoRA is scaled by alpha / rank; 0: by 1."),
                number("dropout", 0.0, 0.9, 0.05, "Share of the LoRA's inputs left out at random, against learning by heart."),
                number("debias", 0.0, 10.0, 0.05, "Weight of the anchor frame in the appearance-debiased loss; 0: looks leak into it."),
                number("spatial_probability", 0.0, 1.0, 0.05, "Share of steps that train the looks as well; 0 trains no spatial LoRA."),
                targets("temporal_targets", "Layers of the motion model that get the LoRA: those whose name ends in one of these."),
                targets("spatial_targets", "The same for the checkpoint's layers."),
                number("min_snr_gamma", 0.0, 100.0, 0.5, "Weighs clear samples less; 5 is common, 0 is off."),
                number("truncated_snr_cap", 0.0, 1000.0, 1.0, "Weighs noisy samples, where motion is decided, up to so much more; 0 is off."),
                number("timestep_bias", 0.0, 10.0, 0.1, "Draws noisy timesteps more often; 0: all the same."),
                number("noise_offset", 0.0, 1.0, 0.01, "Teaches very dark and bright clips; 0.1 is common, 0 is off."),
                number("caption_dropout", 0.0, 0.9, 0.05, "Share of steps without a caption."),
                number("max_grad_norm", 0.01, 1000.0, 0.1, "Longer gradients are shortened to this."),
                number("ema_decay", 0.0, 0.9999, 0.0001, "Save a moving average of the weights; 0.99 is common, 0 is off."),
                whole("held_out", 0, 1000, "So many clips are not trained on: their loss tells learning the motion from learning by heart."),
                whole("validate_every", 1, 100000, "Steps between measurements of that loss."),
                io.Combo.Input(
                    "precision", options=list(PRECISIONS), default=DEFAULTS.precision, optional=True,
                    tooltip="What layers compute in; LoRA weights are kept in float32. auto is bfloat16 where the device is good at it.",
                ),
                io.Boolean.Input(
                    "gradient_checkpointing", default=True, optional=True,
                    tooltip="Less memory for more time; the result is the same.",
                ),
                io.Boolean.Input(
                    "tensorboard", default=False, optional=True,
                    tooltip="Write logs for TensorBoard beside the MotionLoRA; needs pip install tensorboard.",
                ),
            ],
            outputs=[TrainingSettingsSocket.Output(display_name="settings", tooltip="For Train MotionDirector.")],
        )  # fmt: skip

    @classmethod
    def execute(cls, **settings) -> io.NodeOutput:
        for key in ("temporal_targets", "spatial_targets"):
            if key in settings:
                settings[key] = [part.strip() for part in settings[key].split(",") if part.strip()]
        return io.NodeOutput(settings)
