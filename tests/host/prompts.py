"""Prompts (API format) for the small models, built from stock nodes and ours."""

from __future__ import annotations

from typing import Any

from .checkpoints import CHECKPOINT, MOTION_MODEL

Prompt = dict[str, Any]
SIZE = 32  # px: of 64, a clip takes three times as long


def node(class_type: str, **inputs: Any) -> dict[str, Any]:
    return {"class_type": class_type, "inputs": inputs}


def animation(
    frames: int = 8, steps: int = 2, size: int = SIZE, motion_model: str = MOTION_MODEL, **apply: Any
) -> Prompt:
    """Checkpoint -> motion model -> KSampler -> PNG frames. apply: further inputs of Apply Motion Model."""
    prompt = stills(frames, steps, size)
    prompt["motion"] = node("DiffDirectorLoadMotionModel", motion_model_name=motion_model)
    prompt["apply"] = node("DiffDirectorApplyMotionModel", model=["checkpoint", 0], motion_model=["motion", 0], **apply)
    prompt["sample"]["inputs"]["model"] = ["apply", 0]
    return prompt


def stills(frames: int = 8, steps: int = 2, size: int = SIZE) -> Prompt:
    """The same without motion."""
    return {
        "checkpoint": node("CheckpointLoaderSimple", ckpt_name=CHECKPOINT),
        "positive": node("CLIPTextEncode", clip=["checkpoint", 1], text="a red ball rolling to the left"),
        "negative": node("CLIPTextEncode", clip=["checkpoint", 1], text=""),
        "latent": node("EmptyLatentImage", width=size, height=size, batch_size=frames),
        "sample": node(
            "KSampler", model=["checkpoint", 0], positive=["positive", 0], negative=["negative", 0], latent_image=["latent", 0],
            seed=1, steps=steps, cfg=4.0, sampler_name="euler", scheduler="normal", denoise=1.0,
        ),
        "decode": node("VAEDecode", samples=["sample", 0], vae=["checkpoint", 2]),
        "save": node("SaveImage", images=["decode", 0], filename_prefix="frames"),
    }  # fmt: skip
