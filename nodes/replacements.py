"""Workflows of AnimateDiff-Evolved, Advanced-ControlNet (SparseCtrl) and ADMotionDirector with our nodes, where those are not installed.

The front end offers the replacements when such a workflow is opened. For prompts that come over HTTP the host has a
replacement of its own, which fails on an optional input that a prompt leaves out; ours works on the prompt before that.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from comfy_api.latest import ComfyAPI, io
from server import PromptServer

import nodes

LOADER, APPLY, SAMPLING = "DiffDirectorEvolvedLoader", "DiffDirectorEvolvedApply", "DiffDirectorEvolvedSampling"
OPTIONS, VIEWS = "DiffDirectorEvolvedContextOptions", "DiffDirectorEvolvedViewOptions"
MULTIVAL, LORA = "DiffDirectorEvolvedMultival", "DiffDirectorMotionLora"
ITERATIONS = "DiffDirectorEvolvedIterations"
METHOD, ADVANCED_APPLY = "DiffDirectorAdvancedSparseMethod", "DiffDirectorAdvancedApply"


@dataclass(frozen=True)
class Replacement:
    """What an old node becomes; its outputs keep their places.

    new: id of the new node. widgets: of the old node, in the order in which a workflow saves their values. inputs: old id
    -> new id. values: for inputs of the new node that the old one did not have, or that old workflows leave out.
    """

    new: str
    widgets: tuple[str, ...]
    inputs: Mapping[str, str]
    values: Mapping[str, Any] = field(default_factory=dict)
    outputs: int = 1

    def of(self, node: Mapping[str, Any]) -> dict[str, Any]:
        """The node of a prompt (API format) in its place."""
        given = {self.inputs[old]: value for old, value in node["inputs"].items() if old in self.inputs}
        return {**node, "class_type": self.new, "inputs": {**self.values, **given}}


def _same(*names: str) -> dict[str, str]:
    return {name: name for name in names}


_MULTIVALS = ("scale_multival", "effect_multival")
_GEN1 = ("model", "model_name", "beta_schedule", "context_options", "motion_lora", "sample_settings")
_WINDOW = ("context_length", "context_overlap", "fuse_method", "prev_context", "view_opts")
_VIEW = ("view_length", "view_overlap", "fuse_method")
_ITERATION = ("iterations", "iter_batch_offset", "iter_seed_offset")
_FREE_INIT = ("iterations", "filter", "d_s", "d_t", "n_butterworth", "sigma_step", "apply_to_1st_iter", "init_type")
_PERCENTS = ("strength", "start_percent", "end_percent")
_ADVANCED = ("positive", "negative", "control_net", "image", *_PERCENTS, "mask_optional", "vae_optional")
_SPARSE_FACTORS = ("sparse_hint_mult", "sparse_nonhint_mult", "sparse_mask_mult")
_SPARSE = ("sparsectrl_name", "use_motion", "motion_strength", "motion_scale")
_AFTER_WINDOW = ("fuse_method", "use_on_equal_length", "start_percent", "guarantee_steps")

REPLACEMENTS: dict[str, Replacement] = {
    "ADE_AnimateDiffLoaderGen1": Replacement(
        LOADER, ("model_name", "beta_schedule"), _same(*_GEN1, *_MULTIVALS, "ad_keyframes")
    ),
    "ADE_AnimateDiffLoaderWithContext": Replacement(
        LOADER,
        ("model_name", "beta_schedule", "motion_scale", "apply_v2_models_properly"),
        _same(*_GEN1, "motion_scale", "apply_v2_models_properly", "ad_keyframes"),
    ),
    "ADE_LoadAnimateDiffModel": Replacement(
        "DiffDirectorLoadMotionModel", ("model_name",), {"model_name": "motion_model_name"}
    ),
    "ADE_ApplyAnimateDiffModelSimple": Replacement(
        APPLY,
        (),
        _same("motion_model", "motion_lora", *_MULTIVALS, "ad_keyframes"),
        {"start_percent": 0.0, "end_percent": 1.0},
    ),
    "ADE_ApplyAnimateDiffModel": Replacement(
        APPLY,
        ("start_percent", "end_percent"),
        _same(
            "motion_model", "start_percent", "end_percent", "motion_lora", *_MULTIVALS, "ad_keyframes", "prev_m_models"
        ),
    ),
    "ADE_UseEvolvedSampling": Replacement(
        SAMPLING, ("beta_schedule",), _same("model", "beta_schedule", "m_models", "context_options", "sample_settings")
    ),
    "ADE_StandardStaticContextOptions": Replacement(
        OPTIONS,
        ("context_length", "context_overlap", *_AFTER_WINDOW),
        _same(*_WINDOW),
        {"context_schedule": "standard_static", "fuse_method": "pyramid"},
    ),
    "ADE_StandardUniformContextOptions": Replacement(
        OPTIONS,
        ("context_length", "context_stride", "context_overlap", *_AFTER_WINDOW),
        _same(*_WINDOW, "context_stride"),
        {"context_schedule": "standard_uniform", "fuse_method": "pyramid"},
    ),
    "ADE_LoopedUniformContextOptions": Replacement(
        OPTIONS,
        ("context_length", "context_stride", "context_overlap", "closed_loop", *_AFTER_WINDOW),
        _same(*_WINDOW, "context_stride", "closed_loop"),
        {"context_schedule": "looped_uniform", "fuse_method": "pyramid"},
    ),
    "ADE_AnimateDiffUniformContextOptions": Replacement(
        OPTIONS,
        ("context_length", "context_stride", "context_overlap", "context_schedule", "closed_loop", *_AFTER_WINDOW),
        _same(*_WINDOW, "context_stride", "closed_loop"),
        {"context_schedule": "looped_uniform", "fuse_method": "flat"},
    ),
    "ADE_BatchedContextOptions": Replacement(
        OPTIONS,
        ("context_length", *_AFTER_WINDOW[2:]),
        _same("context_length", "prev_context"),
        {"context_overlap": 0, "context_schedule": "batched", "fuse_method": "flat"},
    ),
    "ADE_ViewsOnlyContextOptions": Replacement(
        OPTIONS,
        _AFTER_WINDOW[2:],
        {"view_opts_req": "view_opts", "prev_context": "prev_context"},
        {"context_length": 16, "context_overlap": 4, "context_schedule": "view_as_context"},
    ),
    "ADE_StandardStaticViewOptions": Replacement(
        VIEWS,
        ("view_length", "view_overlap", "fuse_method"),
        _same(*_VIEW),
        {"view_schedule": "standard_static", "fuse_method": "flat"},
    ),
    "ADE_StandardUniformViewOptions": Replacement(
        VIEWS,
        ("view_length", "view_stride", "view_overlap", "fuse_method"),
        _same(*_VIEW, "view_stride"),
        {"view_schedule": "standard_uniform", "fuse_method": "pyramid"},
    ),
    "ADE_LoopedUniformViewOptions": Replacement(
        VIEWS,
        ("view_length", "view_stride", "view_overlap", "closed_loop", "fuse_method", "use_on_equal_length"),
        _same(*_VIEW, "view_stride", "closed_loop"),
        {"view_schedule": "looped_uniform", "fuse_method": "pyramid"},
    ),
    "ADE_AnimateDiffSamplingSettings": Replacement(
        "DiffDirectorEvolvedSampleSettings",
        ("batch_offset", "noise_type", "seed_gen", "seed_offset", "adapt_denoise_steps"),
        _same("batch_offset", "noise_type", "seed_gen", "seed_offset", "iteration_opts", "seed_override"),
    ),
    "ADE_IterationOptsFreeInit": Replacement(
        ITERATIONS, (*_FREE_INIT, *_ITERATION[1:]), _same(*_FREE_INIT, *_ITERATION[1:])
    ),
    "ADE_IterationOptsDefault": Replacement(ITERATIONS, _ITERATION, _same(*_ITERATION), {"init_type": "again"}),
    "ADE_AnimateDiffKeyframe": Replacement(
        "DiffDirectorEvolvedKeyframe",
        ("start_percent", "inherit_missing", "guarantee_steps"),
        _same("start_percent", "prev_ad_keyframes", *_MULTIVALS, "inherit_missing", "guarantee_steps"),
    ),
    "ADE_MultivalDynamic": Replacement(MULTIVAL, ("float_val",), _same("float_val", "mask_optional")),
    "ADE_AnimateDiffLoRALoader": Replacement(
        LORA,
        ("name", "strength"),
        {"name": "lora_name", "lora_name": "lora_name", "strength": "strength", "prev_motion_lora": "motion_lora"},
    ),
    "ADMD_LoadLora": Replacement(
        LORA, ("strength",), {"lora_path": "lora_name", "strength": "strength", "prev_motion_lora": "motion_lora"}
    ),
    "ADE_EmptyLatentImageLarge": Replacement(
        "EmptyLatentImage", ("width", "height", "batch_size"), _same("width", "height", "batch_size")
    ),
    "ACN_SparseCtrlLoaderAdvanced": Replacement(
        "DiffDirectorAdvancedSparseLoader",
        (*_SPARSE, "context_aware", *_SPARSE_FACTORS),
        _same(*_SPARSE, "sparse_method", "context_aware", *_SPARSE_FACTORS),
    ),
    "ACN_SparseCtrlIndexMethodNode": Replacement(METHOD, ("indexes",), _same("indexes"), {"method": "indexes"}),
    "ACN_SparseCtrlSpreadMethodNode": Replacement(METHOD, ("spread",), {"spread": "method"}),
    "ACN_SparseCtrlRGBPreprocessor": Replacement("DiffDirectorAdvancedSparsePictures", (), _same("image", "vae")),
    "ACN_AdvancedControlNetApply_v2": Replacement(ADVANCED_APPLY, _PERCENTS, _same(*_ADVANCED), outputs=2),
    "ACN_AdvancedControlNetApply": Replacement(
        ADVANCED_APPLY, _PERCENTS, _same(*_ADVANCED, "model_optional"), outputs=3
    ),
    "ACN_ControlNetLoaderAdvanced": Replacement("ControlNetLoader", ("cnet",), {"cnet": "control_net_name"}),
    "ControlNetLoaderAdvanced": Replacement("ControlNetLoader", ("control_net_name",), _same("control_net_name")),
}


async def register() -> None:
    server = getattr(PromptServer, "instance", None)
    if server is None:
        return
    for old, entry in REPLACEMENTS.items():
        await ComfyAPI().node_replacement.register(
            io.NodeReplace(
                new_node_id=entry.new,
                old_node_id=old,
                old_widget_ids=list(entry.widgets),
                input_mapping=[
                    *({"new_id": name, "set_value": value} for name, value in entry.values.items()),
                    *({"new_id": name, "old_id": former} for former, name in entry.inputs.items()),
                ],
                output_mapping=[{"new_idx": number, "old_idx": number} for number in range(entry.outputs)],
            )
        )
    server.add_on_prompt_handler(replace_in_prompt)


def replace_in_prompt(request: dict[str, Any]) -> dict[str, Any]:
    """For the host's on-prompt handlers: the request with our nodes for those that no installed pack has."""
    prompt = request.get("prompt", {})
    for number, node in prompt.items():
        entry = REPLACEMENTS.get(node.get("class_type"))
        if entry is not None and node["class_type"] not in _installed():
            prompt[number] = entry.of(node)
    return request


def _installed() -> Mapping[str, Any]:
    return nodes.NODE_CLASS_MAPPINGS  # pyright: ignore[reportAttributeAccessIssue]  # the host's nodes.py, not this folder
