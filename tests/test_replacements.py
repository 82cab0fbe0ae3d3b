"""Workflows of AnimateDiff-Evolved and ADMotionDirector with our nodes, where those packs are not installed."""

from __future__ import annotations

import asyncio
import io
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from PIL import Image
from safetensors.torch import save_file

from diffdirector.nodes import replacements
from diffdirector.nodes.replacements import REPLACEMENTS
from diffdirector.tests.host import loras
from diffdirector.tests.host.checkpoints import MOTION_MODEL, link_models, tiny_motion_config
from diffdirector.tests.host.other_pack import install_other_pack
from diffdirector.tests.host.prompts import Prompt, animation, node, stills
from diffdirector.tests.host.provision import ROOT, provision
from diffdirector.tests.host.server import PromptFailed, Server
from diffdirector.tests.host.weights import motion_state

FRAMES = 10
V1, LCM = "v1.safetensors", "lcm.safetensors"
EVERYWHERE = "across frames everywhere (AnimateDiff-Evolved's v1)"
# The link inputs of the old nodes that no replacement takes, and the sockets the replaced nodes give: a prompt with the
# former cannot run in silence without them, for only nodes that stay missing give them.
NOT_TAKEN = {
    "AD_SETTINGS", "PER_BLOCK", "NOISE_LAYERS", "CUSTOM_CFG", "SIGMA_SCHEDULE", "IMAGE_INJECT", "ANCESTRAL_OPTS", "TIMESTEP_KEYFRAME",
    "LATENT_KEYFRAME", "CONTROL_NET_WEIGHTS", "CN_WEIGHTS_EXTRAS",
}  # fmt: skip


@pytest.fixture(scope="module")
def schemas() -> dict[str, Any]:
    from diffdirector import comfy_entrypoint

    extension = asyncio.run(comfy_entrypoint())
    asyncio.run(extension.on_load())
    return {node.GET_SCHEMA().node_id: node.GET_SCHEMA() for node in asyncio.run(extension.get_node_list())}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    base = tmp_path_factory.mktemp("evolved")
    link_models(base)
    motion = motion_state(tiny_motion_config())
    without_middle = {key: value for key, value in motion.items() if not key.startswith("mid_block")}
    v1 = {key: value[:, :24].contiguous() if key.endswith(".pe") else value for key, value in without_middle.items()}
    save_file(v1, base / "models/animatediff_models" / V1)
    lcm = {key: value for key, value in motion.items() if not key.endswith(".pe")}
    save_file(lcm, base / "models/animatediff_models" / LCM)
    folder = base / "models/animatediff_motion_lora"
    folder.mkdir(parents=True)
    save_file(loras.in_original_naming(loras.motion_lora(motion, rank=4, seed=3)), folder / "zoom.safetensors")
    install_other_pack(base)
    with Server(provision(), base) as running:
        yield running


def frames(server: Server, prompt: Prompt) -> np.ndarray:
    saved = server.run(prompt)["save"]["images"]
    return np.stack([np.asarray(Image.open(io.BytesIO(server.file(file)))) for file in saved])


def gen1(kind: str = "ADE_AnimateDiffLoaderGen1", model_name: str = MOTION_MODEL, **loader: Any) -> Prompt:
    prompt = stills(FRAMES)
    prompt["loader"] = node(
        kind, **{"model": ["checkpoint", 0], "model_name": model_name, "beta_schedule": "autoselect"} | loader
    )
    prompt["sample"]["inputs"]["model"] = ["loader", 0]
    return prompt


def gen2(**sampling: Any) -> Prompt:
    prompt = stills(FRAMES)
    prompt["load"] = node("ADE_LoadAnimateDiffModel", model_name=MOTION_MODEL)
    prompt["apply"] = node("ADE_ApplyAnimateDiffModelSimple", motion_model=["load", 0])
    prompt["evolved"] = node(
        "ADE_UseEvolvedSampling", model=["checkpoint", 0], beta_schedule="autoselect", m_models=["apply", 0], **sampling
    )
    prompt["sample"]["inputs"]["model"] = ["evolved", 0]
    return prompt


def windowed(prompt: Prompt, **settings: Any) -> Prompt:
    """With our Context Windows before the sampler."""
    prompt["windows"] = node("DiffDirectorContextWindows", model=prompt["sample"]["inputs"]["model"], **settings)
    prompt["sample"]["inputs"]["model"] = ["windows", 0]
    return prompt


def ours(**apply: Any) -> Prompt:
    return animation(FRAMES, **apply)


@pytest.mark.parametrize("old", REPLACEMENTS)
def test_a_replacement_fits_its_node(schemas, old: str) -> None:
    entry = REPLACEMENTS[old]
    given = {*entry.inputs.values(), *entry.values}
    if entry.new in schemas:
        inputs = {item.id: item for item in schemas[entry.new].inputs}
        assert given <= set(inputs)
        assert {name for name, item in inputs.items() if not item.optional} <= given
        for name, value in entry.values.items():
            options = getattr(inputs[name], "options", None)
            assert options is None or value in options
    else:
        import nodes

        assert given == set(nodes.NODE_CLASS_MAPPINGS[entry.new].INPUT_TYPES()["required"])
    assert f"`{old}`" in (ROOT / "README.md").read_text()


def test_nothing_that_is_not_taken_over_can_be_left_out_unseen(schemas) -> None:
    given = {
        output.get_io_type()
        for entry in REPLACEMENTS.values()
        if entry.new in schemas
        for output in schemas[entry.new].outputs
    }
    assert not given & NOT_TAKEN


def test_a_prompt_keeps_what_we_do_not_know_and_what_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    import nodes

    lora = {
        "class_type": "ADE_AnimateDiffLoRALoader",
        "inputs": {"name": "a", "strength": 2.0},
        "_meta": {"title": "x"},
    }
    stranger = node("ADE_PIA_AnimateDiffKeyframe", start_percent=0.5)
    request = replacements.replace_in_prompt({"prompt": {"1": lora, "2": stranger}, "client_id": "c"})
    replaced = {
        "class_type": "DiffDirectorMotionLora",
        "inputs": {"lora_name": "a", "strength": 2.0},
        "_meta": {"title": "x"},
    }
    assert request == {"prompt": {"1": replaced, "2": stranger}, "client_id": "c"}
    monkeypatch.setitem(nodes.NODE_CLASS_MAPPINGS, "ADE_AnimateDiffLoRALoader", object)
    assert replacements.replace_in_prompt({"prompt": {"1": lora}}) == {"prompt": {"1": lora}}


@pytest.mark.slow
def test_the_front_end_learns_of_every_replacement(server: Server) -> None:
    known = server.get("/node_replacements")
    definitions = server.get("/object_info")
    for old, entry in REPLACEMENTS.items():
        (listed,) = known[old]
        assert listed["new_node_id"] == entry.new and entry.new in definitions
        assert listed["old_widget_ids"] == list(entry.widgets)
        assert listed["output_mapping"] == [{"new_idx": number, "old_idx": number} for number in range(entry.outputs)]
        named = {item["old_id"]: item["new_id"] for item in listed["input_mapping"] if "old_id" in item}
        assert named == entry.inputs


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model_name", "apply"),
    [
        (MOTION_MODEL, {"beta_schedule": "sqrt_linear (AnimateDiff)"}),
        (V1, {"beta_schedule": "sqrt_linear (AnimateDiff)", "group_norm": EVERYWHERE}),
        (LCM, {"beta_schedule": "lcm"}),
    ],
    ids=["v2", "v1", "AnimateLCM"],
)
def test_a_gen1_workflow_makes_the_same_clip(server: Server, model_name: str, apply: dict[str, Any]) -> None:
    expected = frames(server, ours(motion_model=model_name, **apply))
    assert (frames(server, gen1(model_name=model_name)) == expected).all()
    if model_name != MOTION_MODEL:
        assert (frames(server, ours(motion_model=model_name)) != expected).any()


@pytest.mark.slow
def test_a_long_gen1_workflow_with_a_motion_lora_makes_the_same_clip(server: Server) -> None:
    prompt = gen1(context_options=["context", 0], motion_lora=["lora", 0])
    prompt["context"] = node(
        "ADE_StandardStaticContextOptions", context_length=8, context_overlap=3, fuse_method="relative"
    )
    prompt["lora"] = node("ADE_AnimateDiffLoRALoader", name="zoom.safetensors", strength=0.7)
    reference = windowed(ours(motion_lora=["lora", 0]), context_length=8, overlap=3, fuse="relative")
    reference["lora"] = node("DiffDirectorMotionLora", lora_name="zoom.safetensors", strength=0.7)
    expected = frames(server, reference)
    assert (frames(server, prompt) == expected).all()
    for left_out in ("context_options", "motion_lora"):
        inputs = {key: value for key, value in prompt["loader"]["inputs"].items() if key != left_out}
        assert (frames(server, prompt | {"loader": node("ADE_AnimateDiffLoaderGen1", **inputs)}) != expected).any()


@pytest.mark.slow
def test_the_legacy_loaders_motion_scale_is_the_attention_scale(server: Server) -> None:
    reference = ours(motion_strength=["strength", 0])
    reference["strength"] = node("DiffDirectorMotionStrength", kind="attention scale", strength=1.4)
    expected = frames(server, reference)
    assert (frames(server, gen1("ADE_AnimateDiffLoaderWithContext", motion_scale=1.4)) == expected).all()
    improper = gen1("ADE_AnimateDiffLoaderWithContext", motion_scale=1.4, apply_v2_models_properly=False)
    reference["apply"]["inputs"]["group_norm"] = EVERYWHERE
    assert (frames(server, improper) == frames(server, reference)).all()


@pytest.mark.slow
def test_a_gen2_workflow_makes_the_same_clip(server: Server) -> None:
    prompt = gen2(context_options=["context", 0])
    prompt["context"] = node(
        "ADE_LoopedUniformContextOptions", context_length=8, context_stride=1, context_overlap=2, closed_loop=True
    )
    prompt["apply"] = node(
        "ADE_ApplyAnimateDiffModel", motion_model=["load", 0], start_percent=0.0, end_percent=0.6,
        scale_multival=["scale", 0], effect_multival=["effect", 0],
    )  # fmt: skip
    prompt["scale"], prompt["effect"] = (
        node("ADE_MultivalDynamic", float_val=1.3),
        node("ADE_MultivalDynamic", float_val=0.8),
    )
    reference = windowed(
        ours(end_percent=0.6, motion_strength=["effect", 0]),
        context_length=8, overlap=2, schedule="looped_uniform", closed_loop=True,
    )  # fmt: skip
    reference["scale"] = node("DiffDirectorMotionStrength", kind="attention scale", strength=1.3)
    reference["effect"] = node("DiffDirectorMotionStrength", kind="effect", strength=0.8, motion_strength=["scale", 0])
    assert (frames(server, prompt) == frames(server, reference)).all()
    assert "looped_uniform: the windows lie elsewhere" in server.log.read_text()
    assert (frames(server, gen2()) == frames(server, ours())).all()


@pytest.mark.slow
def test_without_a_motion_model_gen2_leaves_the_checkpoint_as_it_is(server: Server) -> None:
    prompt = gen2()
    del prompt["evolved"]["inputs"]["m_models"], prompt["load"], prompt["apply"]
    assert (frames(server, prompt) == frames(server, stills(FRAMES))).all()


@pytest.mark.slow
def test_two_motion_models_add_up_and_say_so(server: Server) -> None:
    prompt = gen2()
    prompt["apply"] = node(
        "ADE_ApplyAnimateDiffModel",
        motion_model=["load", 0],
        start_percent=0.0,
        end_percent=1.0,
        prev_m_models=["first", 0],
    )
    prompt["first"] = node("ADE_ApplyAnimateDiffModelSimple", motion_model=["load_first", 0])
    prompt["load_first"] = node("ADE_LoadAnimateDiffModel", model_name=V1)
    reference = ours()
    reference["motion_first"] = node("DiffDirectorLoadMotionModel", motion_model_name=V1)
    reference["second"] = node(
        "DiffDirectorApplyMotionModel", model=["apply", 0], motion_model=["motion_first", 0], group_norm="per frame"
    )
    reference["sample"]["inputs"]["model"] = ["second", 0]
    assert (frames(server, prompt) == frames(server, reference)).all()
    assert "in AnimateDiff-Evolved each works on the last one's" in server.log.read_text()


@pytest.mark.slow
def test_what_has_no_counterpart_is_named(server: Server) -> None:
    masked = gen1(scale_multival=["multival", 0])
    masked["multival"] = node("ADE_MultivalDynamic", float_val=1.0, mask_optional=["mask", 0])
    masked["mask"] = node("SolidMask", value=1.0, width=64, height=64)
    with pytest.raises(PromptFailed, match="mask_optional: expected nothing, found a mask.*Motion Strength"):
        server.run(masked)
    changing = gen1(context_options=["second", 0])
    for name, previous in {"first": {}, "second": {"prev_context": ["first", 0]}}.items():
        changing[name] = node("ADE_StandardStaticContextOptions", context_length=8, context_overlap=2, **previous)
    with pytest.raises(PromptFailed, match="prev_context: expected nothing"):
        server.run(changing)
    random = gen1(context_options=["context", 0])
    random["context"] = node(
        "ADE_StandardStaticContextOptions", context_length=8, context_overlap=2, fuse_method="random"
    )
    with pytest.raises(PromptFailed, match="fuse_method: 'random' not in"):
        server.run(random)
    schedule = gen1(sample_settings=["settings", 0])
    schedule["settings"] = node("ADE_AnimateDiffSamplingSettings", sigma_schedule=["sigmas", 0])
    schedule["sigmas"] = node("ADE_SigmaSchedule", beta_schedule="lcm")
    with pytest.raises(PromptFailed, match="ADE_SigmaSchedule"):
        server.run(schedule)
    incomplete = gen1()
    del incomplete["loader"]["inputs"]["model"]
    with pytest.raises(PromptFailed, match="Required input is missing"):
        server.run(incomplete)


@pytest.mark.slow
def test_a_node_of_an_installed_pack_is_left_alone(server: Server) -> None:
    prompt = stills(2, steps=1) | {"latent": node("ADE_EmptyLatentImageLarge", width=64, height=64, batch_size=2)}
    assert len(frames(server, prompt)) == 2 + 3
