"""The node contract: ids and inputs stay, and every node explains itself."""

from __future__ import annotations

import asyncio
import json
import re
from pathlib import Path

import pytest
from comfy.samplers import KSampler

from diffdirector.tests.host.provision import OLDEST

ROOT = Path(__file__).resolve().parents[1]

# DESIGN, "Node contract": (inputs, outputs) of what is shipped; inputs may be added at the end, never taken away
CONTRACT = {
    "DiffDirectorLoadMotionModel": (["motion_model_name"], ["MOTION_MODEL"]),
    "DiffDirectorApplyMotionModel": (
        ["model", "motion_model", "beta_schedule", "motion_lora", "strength", "start_percent", "end_percent"],
        ["MODEL"],
    ),
    "DiffDirectorMotionLora": (
        ["lora_name", "strength", "motion_lora", "frames_curve", "steps_curve"],
        ["MOTION_LORA"],
    ),
    "DiffDirectorMotionStrength": (
        ["kind", "strength", "frames_curve", "steps_curve", "mask", "blocks", "motion_strength"],
        ["MOTION_STRENGTH"],
    ),
    "DiffDirectorMergeMotionLora": (
        ["motion_lora_1", "motion_lora_2", "weight_1", "weight_2", "rank"],
        ["MOTION_LORA"],
    ),
    "DiffDirectorSaveMotionLora": (["motion_lora", "filename_prefix", "dialect", "precision", "rank"], ["STRING"]),
    "DiffDirectorDomainAdapter": (["model", "adapter_name", "strength"], ["MODEL"]),
    "DiffDirectorContextWindows": (
        [
            "model",
            "context_length",
            "overlap",
            "stride",
            "schedule",
            "fuse",
            "closed_loop",
            "freenoise",
            "plan_frames",
            "views",
            "windows_at_once",
        ],
        ["MODEL", "IMAGE"],
    ),
    "DiffDirectorVideoDataset": (
        ["source", "caption", "frames", "frame_step", "width", "height", "chain"],
        ["MOTION_DATASET", "IMAGE"],
    ),
    "DiffDirectorTrainMotionModule": (
        ["model", "clip", "vae", "dataset", "name", "steps", "motion_model"],
        ["MOTION_MODEL", "STRING", "IMAGE"],
    ),
    "DiffDirectorTrainMotionDirector": (
        ["model", "clip", "vae", "motion_model", "dataset", "name", "steps"],
        ["MOTION_LORA", "LORA_MODEL", "LOSS_MAP", "IMAGE", "STRING"],
    ),
    "DiffDirectorMotionDirectorSettings": (["lr_schedule", "warmup_steps"], ["MOTION_TRAINING_SETTINGS"]),
    "DiffDirectorPromptTravel": (
        ["clip", "prompts", "frames", "prefix", "suffix", "interpolation"],
        ["CONDITIONING", "IMAGE"],
    ),
    "DiffDirectorCurve": (["curve", "interpolation", "frames"], ["MOTION_CURVE", "FLOAT", "FLOATS", "IMAGE"]),
    "DiffDirectorCurveFromList": (["values", "interpolation", "frames"], ["MOTION_CURVE", "FLOAT", "FLOATS", "IMAGE"]),
    "DiffDirectorFreeInit": (["model", "iterations", "filter", "d_s", "d_t", "order"], ["MODEL"]),
    "DiffDirectorClipNoise": (["model", "kind", "period", "overlap", "seeds", "to_seed"], ["MODEL"]),
    "DiffDirectorFewSteps": (
        ["model", "preset"],
        ["MODEL", "INT", "FLOAT", KSampler.SAMPLERS, KSampler.SCHEDULERS, "SAMPLER", "SIGMAS"],
    ),
    "DiffDirectorLoadFootage": (
        ["video", "frame_rate", "start", "frames", "width", "height"],
        ["IMAGE", "INT", "FLOAT"],
    ),
    "DiffDirectorAnchorFrames": (["images", "vae", "indices", "strength", "latent", "frames", "reach"], ["LATENT"]),
    "DiffDirectorLoopClip": (["images", "method", "frames"], ["IMAGE"]),
    "DiffDirectorSaveAnimation": (
        ["images", "filename_prefix", "frame_rate", "format", "quality", "loops", "audio"],
        ["STRING"],
    ),
    "DiffDirectorClipGrid": (
        ["images", "columns", "row_labels", "column_labels", "label_size", "shorter_clips"],
        ["IMAGE"],
    ),
    "DiffDirectorListFromText": (["text", "each", "times"], ["STRING", "INT", "FLOAT"]),
    "DiffDirectorLoadSparseCtrl": (["control_net_name"], ["CONTROL_NET"]),
    "DiffDirectorApplySparseCtrl": (
        ["positive", "negative", "control_net", "images", "indices", "vae", "strength", "start_percent", "end_percent"],
        ["CONDITIONING", "CONDITIONING"],
    ),
    "DiffDirectorScribblePreprocessor": (
        ["images", "method", "threshold", "thickness", "invert", "normalize"],
        ["IMAGE"],
    ),
    "DiffDirectorPIA": (["model", "vae", "image", "motion", "frame", "similarity"], ["MODEL"]),
    "DiffDirectorEvolvedLoader": (
        ["model", "model_name", "beta_schedule", "context_options", "motion_lora", "scale_multival", "effect_multival"],
        ["MODEL"],
    ),
    "DiffDirectorEvolvedApply": (
        ["motion_model", "start_percent", "end_percent", "motion_lora", "scale_multival", "effect_multival"],
        ["M_MODELS"],
    ),
    "DiffDirectorEvolvedSampling": (["model", "beta_schedule", "m_models", "context_options"], ["MODEL"]),
    "DiffDirectorEvolvedContextOptions": (
        ["context_length", "context_overlap", "context_stride", "context_schedule", "closed_loop", "fuse_method"],
        ["CONTEXT_OPTIONS"],
    ),
    "DiffDirectorEvolvedMultival": (["float_val", "mask_optional"], ["MULTIVAL"]),
    "DiffDirectorEvolvedViewOptions": (
        ["view_length", "view_overlap", "view_stride", "view_schedule", "closed_loop", "fuse_method"],
        ["VIEW_OPTS"],
    ),
    "DiffDirectorEvolvedKeyframe": (
        [
            "start_percent",
            "prev_ad_keyframes",
            "scale_multival",
            "effect_multival",
            "inherit_missing",
            "guarantee_steps",
        ],
        ["AD_KEYFRAMES"],
    ),
    "DiffDirectorEvolvedSampleSettings": (
        ["batch_offset", "noise_type", "seed_gen", "seed_offset", "iteration_opts", "seed_override"],
        ["SAMPLE_SETTINGS"],
    ),
    "DiffDirectorEvolvedIterations": (["iterations", "init_type", "filter", "d_s", "d_t"], ["ITERATION_OPTS"]),
    "DiffDirectorAdvancedSparseLoader": (
        ["sparsectrl_name", "use_motion", "motion_strength", "motion_scale", "sparse_method", "context_aware"],
        ["CONTROL_NET"],
    ),
    "DiffDirectorAdvancedSparseMethod": (["method", "indexes"], ["SPARSE_METHOD"]),
    "DiffDirectorAdvancedSparsePictures": (["image", "vae"], ["IMAGE"]),
    "DiffDirectorAdvancedApply": (
        ["positive", "negative", "control_net", "image", "strength", "start_percent", "end_percent"],
        ["CONDITIONING", "CONDITIONING", "MODEL"],
    ),
    "DiffDirectorTrainSparseCtrl": (
        ["model", "clip", "vae", "motion_model", "dataset", "name", "steps", "kind", "start_from"],
        ["CONTROL_NET", "STRING", "IMAGE"],
    ),
    "DiffDirectorTrainDomainAdapter": (
        ["model", "clip", "vae", "dataset", "name", "steps", "rank", "learning_rate"],
        ["LORA_MODEL", "LOSS_MAP", "IMAGE", "STRING"],
    ),
    "DiffDirectorTrainMotionLora": (
        ["model", "clip", "vae", "motion_model", "dataset", "name", "steps", "rank", "learning_rate"],
        ["MOTION_LORA", "LOSS_MAP", "IMAGE", "STRING"],
    ),
}
LOCALES = ["en", "zh"]


@pytest.fixture(scope="module")
def schemas():
    from diffdirector import comfy_entrypoint

    extension = asyncio.run(comfy_entrypoint())
    asyncio.run(extension.on_load())
    return {node.GET_SCHEMA().node_id: node.GET_SCHEMA() for node in asyncio.run(extension.get_node_list())}


def test_every_node_of_the_contract_is_there(schemas) -> None:
    assert set(schemas) == set(CONTRACT)


@pytest.mark.parametrize("node_id", CONTRACT)
def test_inputs_and_outputs_are_those_of_the_contract(schemas, node_id) -> None:
    inputs, outputs = CONTRACT[node_id]
    schema = schemas[node_id]
    assert [item.id for item in schema.inputs][: len(inputs)] == inputs
    assert [item.get_io_type() for item in schema.outputs] == outputs
    assert schema.category.startswith("DiffDirector")


@pytest.mark.parametrize("node_id", CONTRACT)
def test_nodes_explain_themselves(schemas, node_id) -> None:
    schema = schemas[node_id]
    assert schema.display_name
    assert re.fullmatch(r"[A-Z][^\n]{30,160}\.", schema.description)
    assert len(schema.search_aliases) >= 3
    for item in (*schema.inputs, *schema.outputs):
        assert item.tooltip and item.tooltip.endswith("."), f"{node_id}.{item.id} has no tooltip"
    page = (ROOT / "web" / "docs" / f"{node_id}.md").read_text()
    for item in schema.inputs:
        assert f"**{item.id}**" in page, f"the help page of {node_id} does not mention {item.id}"


@pytest.mark.parametrize("locale", LOCALES)
@pytest.mark.parametrize("node_id", CONTRACT)
def test_locales_cover_every_node(schemas, node_id, locale) -> None:
    entry = json.loads((ROOT / "locales" / locale / "nodeDefs.json").read_text())[node_id]
    schema = schemas[node_id]
    assert entry["display_name"] and entry["description"]
    assert set(entry["inputs"]) == {item.id for item in schema.inputs}
    assert all(text["name"] and text["tooltip"] for text in entry["inputs"].values())
    assert set(entry["outputs"]) == {str(index) for index in range(len(schema.outputs))}
    if locale == "en":
        assert entry["description"] == schema.description
        assert {item.id: item.tooltip for item in schema.inputs} == {
            k: v["tooltip"] for k, v in entry["inputs"].items()
        }


def test_model_folders_are_shared_with_other_packs(schemas) -> None:
    import folder_paths

    for name in ("animatediff_models", "animatediff_motion_lora"):
        paths, extensions = folder_paths.folder_names_and_paths[name]
        assert any(Path(path).name == name for path in paths)
        assert extensions >= {".safetensors", ".ckpt", ".pt", ".pth", ".bin"}


def test_declared_host_version_is_the_oldest_we_test() -> None:
    text = (ROOT / "pyproject.toml").read_text()
    assert f'requires-comfyui = ">={OLDEST}"' in text


def test_sockets_refuse_objects_of_other_packs() -> None:
    from diffdirector.nodes import types

    with pytest.raises(ValueError, match="DiffDirector's Load Motion Model, found a dict"):
        types.motion_model({})
    with pytest.raises(ValueError, match="DiffDirector's Motion LoRA, found a list"):
        types.motion_loras([1])
    with pytest.raises(ValueError, match="DiffDirector's Video Dataset, found a str"):
        types.motion_dataset("videos")
    with pytest.raises(ValueError, match="MotionDirector Settings, found a list"):
        types.training_settings([])
    with pytest.raises(ValueError, match="a SparseCtrl from Load SparseCtrl, found a dict"):
        types.sparse_ctrl({})
    assert types.motion_loras(None) == ()


def test_the_version_is_one() -> None:
    from diffdirector.lora.version import VERSION

    assert f'version = "{VERSION}"' in (ROOT / "pyproject.toml").read_text()
