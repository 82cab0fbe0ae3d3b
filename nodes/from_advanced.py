"""Advanced-ControlNet's SparseCtrl nodes, for workflows made with them; replacements.py puts ours in.

Deprecated from the start: they are found by old workflows, not in the node library. There the loader says which frames the
pictures are for, and any node that applies ControlNets gives it those.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from comfy_api.latest import io
from torch import Tensor

import nodes

from ..motion.indices import Place
from ..motion.sparsectrl import SparseControl, load_sparse_ctrl
from . import folders, types

SparseMethodSocket = io.Custom("SPARSE_METHOD")

INDEXES, UNIFORM, STARTING, ENDING, CENTER = "indexes", "uniform", "starting", "ending", "center"
LEFT_OUT = {UNIFORM: (0, 0), STARTING: (0, 1), ENDING: (1, 0), CENTER: (1, 1)}  # points before and after the pictures
NEAREST, OFF = "nearest_hint", "off"
CATEGORY = "DiffDirector/From Advanced-ControlNet"


@dataclass(frozen=True)
class SparseMethod:
    """Frames of pictures as Advanced-ControlNet finds them. indexes: of the first pictures, one each, for the kind of this name."""

    kind: str = UNIFORM
    indexes: tuple[int, ...] = ()

    def places(self, frames: int, pictures: int) -> list[Place]:
        """Raises ValueError for fewer indexes than pictures, and for two of the same frame."""
        found = self._indexed if self.kind == INDEXES else self._spread
        return [
            Place(frame, picture, 1.0)
            for picture, frame in enumerate(found(frames, min(pictures, frames)))
            if 0 <= frame < frames
        ]

    def _indexed(self, frames: int, pictures: int) -> list[int]:
        if len(self.indexes) < pictures:
            raise ValueError(
                f"indexes: expected {pictures}, one for each picture; found {len(self.indexes)}. Name more frames, or give fewer pictures."
            )
        found = [index % frames if -frames <= index < 0 else index for index in self.indexes[:pictures]]
        if len(set(found)) < len(found):
            raise ValueError(f"indexes: expected different frames of the {frames} of the clip, found {self.indexes}.")
        return found

    def _spread(self, frames: int, pictures: int) -> list[int]:
        if pictures == frames:
            return list(range(frames))
        crowded = self.kind == CENTER and pictures > 1 and frames - pictures < 3
        before, after = LEFT_OUT[STARTING if crowded else self.kind]
        points = np.linspace(0, frames - 1, before + pictures + after, dtype=int).tolist()
        return points[before : before + pictures]


@dataclass(frozen=True)
class PlacedSparseCtrl:
    """CONTROL_NET: a SparseCtrl that knows where pictures go before it has any. It becomes one where a node applies it.

    copy and set_cond_hint are what the host's own nodes call.
    """

    control: SparseControl
    method: SparseMethod
    motion_strength: float
    attention: float
    nearest: bool

    def copy(self) -> PlacedSparseCtrl:
        return self

    def set_cond_hint(
        self, cond_hint: Any, strength: float = 1.0, timestep_percent_range: tuple[float, float] = (0.0, 1.0), vae: Any = None, **_: Any
    ) -> SparseControl:  # fmt: skip
        if isinstance(cond_hint, PicturesWithVae):
            cond_hint, vae = cond_hint.pictures, cond_hint.vae
        return self.control.conditioned(
            cond_hint[:, :3], self.method,
            vae=vae, strength=strength, percent_range=timestep_percent_range, motion_strength=self.motion_strength, nearest=self.nearest,
            attention=self.attention,
        )  # fmt: skip


@dataclass(frozen=True)
class PicturesWithVae:
    """Goes from RGB SparseCtrl to the node that applies it as if it were an IMAGE. pictures: [n, channels, height, width]."""

    pictures: Tensor
    vae: Any

    def movedim(self, *_: int) -> PicturesWithVae:
        return self


class AdvancedSparseLoader(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="DiffDirectorAdvancedSparseLoader",
            display_name="Load SparseCtrl Model",
            category=CATEGORY,
            description="Advanced-ControlNet's loader of SparseCtrls, for workflows made with it; in new ones, Load SparseCtrl.",
            search_aliases=["load sparsectrl model", "acn sparsectrl", "advanced controlnet"],
            is_deprecated=True,
            inputs=[
                io.Combo.Input("sparsectrl_name", options=folders.names(folders.CONTROLNETS), tooltip="A file in models/controlnet."),
                io.Boolean.Input("use_motion", default=True, tooltip="Off: its motion modules do nothing."),
                io.Float.Input(
                    "motion_strength", default=1.0, min=0.0, max=10.0, step=0.001, tooltip="How strongly its motion modules carry pictures on to other frames.",
                ),
                io.Float.Input("motion_scale", default=1.0, min=0.0, max=10.0, step=0.001, tooltip="A factor on its motion modules' attention."),
                SparseMethodSocket.Input("sparse_method", optional=True, tooltip="From SparseCtrl Method. Without it: pictures spread evenly."),
                io.Combo.Input(
                    "context_aware", options=[NEAREST, OFF], default=NEAREST, optional=True,
                    tooltip="nearest_hint: a context window without a picture sees the nearest one, at its edge. off: it is left as it is.",
                ),
                _factor("sparse_hint_mult", "what frames with a picture get"),
                _factor("sparse_nonhint_mult", "what the other frames get"),
                _factor("sparse_mask_mult", "the mask"),
            ],
            outputs=[io.ControlNet.Output(display_name="control_net", tooltip="For Apply Advanced ControlNet, or ComfyUI's Apply ControlNet.")],
        )  # fmt: skip

    @classmethod
    def execute(
        cls, sparsectrl_name, use_motion, motion_strength, motion_scale, sparse_method=None, context_aware=NEAREST,
        sparse_hint_mult=1.0, sparse_nonhint_mult=1.0, sparse_mask_mult=1.0,
    ) -> io.NodeOutput:  # fmt: skip
        factors = {"sparse_hint_mult": sparse_hint_mult, "sparse_nonhint_mult": sparse_nonhint_mult, "sparse_mask_mult": sparse_mask_mult}  # fmt: skip
        for name, factor in factors.items():
            if factor != 1:
                raise ValueError(
                    f"{name}: expected 1, found {factor}. This factor has no counterpart in DiffDirector: set it to 1, or use Apply SparseCtrl, "
                    "which takes a strength for each picture."
                )
        method = types.own("sparse_method", sparse_method, SparseMethod, "SparseCtrl Method") or SparseMethod()
        control = load_sparse_ctrl(folders.path_of(folders.CONTROLNETS, sparsectrl_name), sparsectrl_name)
        strength = motion_strength if use_motion else 0.0
        return io.NodeOutput(PlacedSparseCtrl(control, method, strength, motion_scale, context_aware == NEAREST))


class AdvancedSparseMethod(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="DiffDirectorAdvancedSparseMethod",
            display_name="SparseCtrl Method",
            category=CATEGORY,
            description="Advanced-ControlNet's frames of a SparseCtrl's pictures, for workflows made with it; in new ones, Apply SparseCtrl.",
            search_aliases=["sparsectrl index method", "sparsectrl spread method", "advanced controlnet"],
            is_deprecated=True,
            inputs=[
                io.Combo.Input(
                    "method", options=[INDEXES, *LEFT_OUT], default=INDEXES,
                    tooltip="indexes: the frames named below. Otherwise all pictures are spread over the clip.",
                ),
                io.String.Input(
                    "indexes", default="0", optional=True, tooltip="Frames of the pictures, with commas between: 0 is the first, -1 the last.",
                ),
            ],
            outputs=[SparseMethodSocket.Output(display_name="sparse_method", tooltip="For Load SparseCtrl Model.")],
        )  # fmt: skip

    @classmethod
    def execute(cls, method, indexes="0") -> io.NodeOutput:
        if method != INDEXES:
            return io.NodeOutput(SparseMethod(method))
        try:
            return io.NodeOutput(SparseMethod(INDEXES, tuple(int(index) for index in indexes.split(","))))
        except ValueError:
            raise ValueError(
                f"indexes: expected whole numbers with commas between, such as 0, 8, -1; found {indexes!r}."
            ) from None


class AdvancedSparsePictures(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="DiffDirectorAdvancedSparsePictures",
            display_name="RGB SparseCtrl",
            category=CATEGORY,
            description="Advanced-ControlNet's pictures for an rgb SparseCtrl, for workflows made with it; in new ones, Apply SparseCtrl.",
            search_aliases=["rgb sparsectrl", "sparsectrl preprocessor", "advanced controlnet"],
            is_deprecated=True,
            inputs=[
                io.Image.Input("image", tooltip="The pictures. They are fitted to the clip that is sampled."),
                io.Vae.Input("vae", tooltip="The checkpoint's."),
            ],
            outputs=[io.Image.Output(display_name="proc_image", tooltip="For the node that applies the SparseCtrl, and no other.")],
        )  # fmt: skip

    @classmethod
    def execute(cls, image, vae) -> io.NodeOutput:
        return io.NodeOutput(PicturesWithVae(image.movedim(-1, 1), vae))


class AdvancedApply(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="DiffDirectorAdvancedApply",
            display_name="Apply Advanced ControlNet",
            category=CATEGORY,
            description="Advanced-ControlNet's apply node, for workflows made with it: applies a SparseCtrl or a ControlNet.",
            search_aliases=["apply advanced controlnet", "acn apply", "advanced controlnet"],
            is_deprecated=True,
            inputs=[
                io.Conditioning.Input("positive", tooltip="The prompt."),
                io.Conditioning.Input("negative", tooltip="The negative prompt."),
                io.ControlNet.Input("control_net", tooltip="From Load SparseCtrl Model, or ComfyUI's Load ControlNet Model."),
                io.Image.Input("image", tooltip="Pictures; for an rgb SparseCtrl from RGB SparseCtrl."),
                io.Float.Input("strength", default=1.0, min=0.0, max=10.0, step=0.01, tooltip="How closely the pictures are followed. 0 is none."),
                io.Float.Input("start_percent", default=0.0, min=0.0, max=1.0, step=0.001, tooltip="From this part of the sampling on."),
                io.Float.Input("end_percent", default=1.0, min=0.0, max=1.0, step=0.001, tooltip="Up to this part of the sampling."),
                io.Mask.Input("mask_optional", optional=True, tooltip="Not possible here. Is refused."),
                io.Vae.Input("vae_optional", optional=True, tooltip="Needed for some ControlNets."),
                io.Model.Input("model_optional", optional=True, tooltip="Given out as it is."),
            ],
            outputs=[
                io.Conditioning.Output(display_name="positive", tooltip="For the sampler, or for a further ControlNet."),
                io.Conditioning.Output(display_name="negative", tooltip="For the sampler, or for a further ControlNet."),
                io.Model.Output(display_name="model_opt", tooltip="The model that came in."),
            ],
        )  # fmt: skip

    @classmethod
    def execute(
        cls, positive, negative, control_net, image, strength, start_percent, end_percent, mask_optional=None, vae_optional=None,
        model_optional=None,
    ) -> io.NodeOutput:  # fmt: skip
        if mask_optional is not None:
            raise ValueError(
                "mask_optional: expected nothing, found a mask. Masks of ControlNets have no counterpart in DiffDirector: disconnect it, or "
                "mask the prompt with ComfyUI's Cond Set Props."
            )
        if isinstance(image, PicturesWithVae) and not isinstance(control_net, PlacedSparseCtrl):
            raise ValueError(
                f"image: expected pictures for a {type(control_net).__name__}, found the output of RGB SparseCtrl. Connect the pictures themselves."
            )
        apply = nodes.ControlNetApplyAdvanced().apply_controlnet  # pyright: ignore[reportAttributeAccessIssue]  # the host's nodes.py
        conditionings = apply(
            positive, negative, control_net, image, strength, start_percent, end_percent, vae_optional
        )
        return io.NodeOutput(*conditionings, model_optional)


def _factor(name: str, of: str) -> io.Input:
    return io.Float.Input(
        name, default=1.0, min=0.0, max=10.0, step=0.001, optional=True, tooltip=f"A factor on {of}. Not possible here: anything but 1 is refused.",
    )  # fmt: skip
