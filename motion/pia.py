"""Gives a picture to the PIA motion model of a MODEL.

PIA (arXiv:2312.13964; github.com/open-mmlab/PIA, animatediff/pipelines/i2v_pipeline.py): the UNet's first convolution
sees, beside the 4 channels of the noisy clip, how like the picture each frame shall be and the picture's latent. For a
checkpoint of one's own the original keeps that convolution's 4 channels and its bias, and adds the 5 from PIA's file; so
do diffusers and AnimateDiff-Evolved, and so does this. Without a picture the original's validation gives zeros for all 5,
as a fifth of its training did: the clip follows the prompt alone, and the convolution is the checkpoint's own.
"""

from __future__ import annotations

from dataclasses import replace

from comfy.model_patcher import ModelPatcher

from .picture import Picture
from .splice import KEY, MotionSplice, install


def apply_picture(model: ModelPatcher, picture: Picture) -> ModelPatcher:
    """A clone of model whose PIA motion model animates picture; of several, the one applied last. It takes the place of an earlier picture.

    Raises ValueError for a model without a PIA motion model.
    """
    splice: MotionSplice | None = model.get_attachment(KEY)
    motions = splice.motions if splice else ()
    places = [place for place, motion in enumerate(motions) if motion.handle.config.takes_picture]
    if splice is None or not places:
        found = " and ".join(f"{motion.handle.name} ({motion.handle.config.version.value})" for motion in motions)
        raise ValueError(
            f"model: expected one with a PIA motion model, found {found or 'one without any motion model'}. "
            "Put Apply Motion Model with a PIA file, such as pia.ckpt, before this node."
        )
    last = places[-1]
    changed = (*motions[:last], replace(motions[last], picture=picture), *motions[last + 1 :])
    result = model.clone()
    install(result, replace(splice, motions=changed), splice)
    return result
