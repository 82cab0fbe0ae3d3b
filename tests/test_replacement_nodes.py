"""What our nodes in place of AnimateDiff-Evolved's and Advanced-ControlNet's make: the clips of our own, or an error before sampling."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from diffdirector.motion.noise import ClipNoise, Drawing, FreeInit
from diffdirector.nodes.from_advanced import INDEXES, SparseMethod
from diffdirector.nodes.from_evolved_noise import EvolvedIterations, EvolvedSampleSettings, SampleSettings
from diffdirector.nodes.replacements import replace_in_prompt
from diffdirector.tests.host.checkpoints import MOTION_MODEL
from diffdirector.tests.host.prompts import Prompt, animation, node, stills
from diffdirector.tests.test_executor import frames
from diffdirector.tests.test_sparsectrl_nodes import RGB, SCRIBBLE, STOCK, files  # noqa: F401  # a fixture

FRAMES = 10
AD_V2 = {"beta_schedule": "sqrt_linear (AnimateDiff)"}
PLAIN = {"batch_offset": 0, "noise_type": "default", "seed_gen": "comfy", "seed_offset": 0}


def theirs(*extra: tuple[str, dict[str, Any]], count: int = FRAMES, **loader: Any) -> Prompt:
    """A Gen1 workflow, and further nodes by name."""
    prompt = stills(count) | dict(extra)
    given = {"model": ["checkpoint", 0], "model_name": MOTION_MODEL, "beta_schedule": "autoselect"}
    prompt["loader"] = node("ADE_AnimateDiffLoaderGen1", **given, **loader)
    prompt["sample"]["inputs"]["model"] = ["loader", 0]
    return prompt


def replaced(prompt: Prompt) -> Prompt:
    """As it comes to the executor. A copy, for the replacement works in place."""
    return replace_in_prompt({"prompt": json.loads(json.dumps(prompt))})["prompt"]


def ours(*extra: tuple[str, dict[str, Any]], model: str = "apply", seed: int = 1, **apply: Any) -> Prompt:
    """An animation whose sampler has the model of this node."""
    prompt = animation(FRAMES, **AD_V2, **apply) | dict(extra)
    prompt["sample"]["inputs"] |= {"model": [model, 0], "seed": seed}
    return prompt


def settings(**changes: Any) -> tuple[str, dict[str, Any]]:
    return "settings", node("ADE_AnimateDiffSamplingSettings", **(PLAIN | changes))


def windows(model: str = "apply", **changes: Any) -> tuple[str, dict[str, Any]]:
    given = {"model": [model, 0], "context_length": 8, "overlap": 3}
    return "windows", node("DiffDirectorContextWindows", **(given | changes))


def clip_noise(model: str = "apply", **given: Any) -> tuple[str, dict[str, Any]]:
    return "noise", node("DiffDirectorClipNoise", model=[model, 0], **given)


OPTIONS = "options", node("ADE_StandardStaticContextOptions", context_length=8, context_overlap=3)
SETTINGS: dict[str, Any] = {"sample_settings": ["settings", 0]}
BOTH: dict[str, Any] = SETTINGS | {"context_options": ["options", 0]}
VIEWS = "views", node("ADE_StandardStaticViewOptions", view_length=8, view_overlap=3)
VIEWS_ALONE = "options", node("ADE_ViewsOnlyContextOptions", view_opts_req=["views", 0])
VIEWS_INSIDE = "options", node("ADE_StandardStaticContextOptions", context_length=9, context_overlap=2, view_opts=["views", 0])  # fmt: skip
BATCHED = "options", node("ADE_BatchedContextOptions", context_length=5)
CURVE = "curve", node("DiffDirectorCurve", curve="0%: 1, 30%: 0.4", interpolation="step", frames=16)
CASES: dict[str, tuple[Prompt, Prompt]] = {
    "constant": (
        theirs(settings(noise_type="constant"), **SETTINGS),
        ours(clip_noise(kind="constant"), model="noise"),
    ),
    "another seed": (theirs(settings(seed_offset=4), **SETTINGS), ours(seed=5)),
    "a seed for each frame": (
        theirs(settings(seed_gen="auto1111", seed_offset=1, batch_offset=2), **SETTINGS),
        ours(clip_noise(kind="default", seeds="4-20"), model="noise"),
    ),
    "repeated context": (
        theirs(settings(noise_type="repeated_context"), OPTIONS, **BOTH),
        ours(windows(), clip_noise("windows", kind="repeated", period=8), model="noise"),
    ),
    "FreeNoise": (
        theirs(settings(noise_type="FreeNoise"), OPTIONS, **BOTH),
        ours(windows(freenoise=True), model="windows"),
    ),
    "views": (
        theirs(VIEWS, VIEWS_ALONE, context_options=["options", 0]),
        ours(windows(views=True, fuse="flat"), model="windows"),
    ),
    "views inside of windows": (
        theirs(VIEWS, VIEWS_INSIDE, context_options=["options", 0]),
        ours(
            ("outer", node("DiffDirectorContextWindows", model=["apply", 0], context_length=9, overlap=2)),
            windows("outer", views=True, fuse="flat"),
            model="windows",
        ),
    ),
    "batched": (
        theirs(BATCHED, context_options=["options", 0]),
        ours(windows(context_length=5, overlap=0, schedule="batched", fuse="flat"), model="windows"),
    ),
    "keyframes": (
        theirs(
            ("second", node("ADE_AnimateDiffKeyframe", start_percent=0.3, prev_ad_keyframes=["first", 0], effect_multival=["weak", 0])),
            ("first", node("ADE_AnimateDiffKeyframe", start_percent=0.0, scale_multival=["strong", 0])),
            ("weak", node("ADE_MultivalDynamic", float_val=0.4)),
            ("strong", node("ADE_MultivalDynamic", float_val=1.5)),
            ad_keyframes=["second", 0],
        ),
        ours(
            ("scale", node("DiffDirectorMotionStrength", kind="attention scale", strength=1.5)),
            ("effect", node("DiffDirectorMotionStrength", kind="effect", strength=1.0, steps_curve=["curve", 0], motion_strength=["scale", 0])),
            CURVE,
            motion_strength=["effect", 0],
        ),
    ),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_settings_of_animatediff_evolved_make_the_clip_of_our_own(executor, base: Path, name: str) -> None:
    old, new = CASES[name]
    expected = frames(executor, base, new)
    assert (frames(executor, base, replaced(old)) == expected).all()
    assert (frames(executor, base, ours()) != expected).any()


@pytest.mark.slow
def test_free_init_takes_its_settings_and_seeds(executor, base: Path) -> None:
    given = {
        "filter": "butterworth",
        "d_s": 0.3,
        "d_t": 0.2,
        "n_butterworth": 3,
        "sigma_step": 999,
        "apply_to_1st_iter": False,
    }
    twice = node("ADE_IterationOptsFreeInit", iterations=2, init_type="FreeInit [model sigma]", **given)
    once = node("ADE_IterationOptsDefault", iterations=1)
    plain, found = (
        frames(executor, base, replaced(theirs(settings(iteration_opts=["times", 0]), ("times", times), **SETTINGS)))
        for times in (once, twice)
    )
    assert (plain == frames(executor, base, ours())).all() and (found != plain).any()
    (options,) = EvolvedIterations.execute(**replaced({"times": twice})["times"]["inputs"], iter_seed_offset=2).args
    assert options == FreeInit(2, "butterworth", 0.3, 0.2, 3, 2)


def test_seeds_of_a_list_are_those_of_the_frames() -> None:
    (found,) = EvolvedSampleSettings.execute(**(PLAIN | {"seed_offset": 1}), seed_override=[5, 9]).args
    assert found == SampleSettings(ClipNoise(seeds=(6, 10)))
    (found,) = EvolvedSampleSettings.execute(**PLAIN, seed_override=7).args
    assert found == SampleSettings(ClipNoise(drawing=Drawing(7)))


def sparse(name: str = SCRIBBLE, apply: str = "ACN_AdvancedControlNetApply_v2", pictures: str = "both", **load: Any) -> Prompt:  # fmt: skip
    """An animation of ours with their SparseCtrl."""
    rgb = name == RGB
    prompt = ours(
        ("a", node("LoadImage", image="a.png")),
        ("b", node("LoadImage", image="b.png")),
        ("both", node("ImageBatch", image1=["a", 0], image2=["b", 0])),
        ("load", node("ACN_SparseCtrlLoaderAdvanced", **({"sparsectrl_name": name, "use_motion": True, "motion_strength": 1.0, "motion_scale": 1.0} | load))),
        ("control", node(
            apply, positive=["positive", 0], negative=["negative", 0], control_net=["load", 0], image=["pictures" if rgb else pictures, 0],
            strength=0.8, start_percent=0.0, end_percent=0.9,
        )),
    )  # fmt: skip
    if rgb:
        prompt["pictures"] = node(
            "ACN_SparseCtrlRGBPreprocessor", image=[pictures, 0], vae=["checkpoint", 2], latent_size=["latent", 0]
        )
    prompt["sample"]["inputs"] |= {"positive": ["control", 0], "negative": ["control", 1]}
    return prompt


def own_sparse(indices: str, name: str = SCRIBBLE, pictures: str = "both", **changes: Any) -> Prompt:
    prompt = sparse(name, pictures=pictures)
    prompt["load"] = node("DiffDirectorLoadSparseCtrl", control_net_name=name)
    prompt["control"] = node(
        "DiffDirectorApplySparseCtrl", positive=["positive", 0], negative=["negative", 0], control_net=["load", 0], images=[pictures, 0],
        indices=indices, vae=["checkpoint", 2], **({"strength": 0.8, "end_percent": 0.9, "nearest_in_windows": True} | changes),
    )  # fmt: skip
    prompt.pop("pictures", None)
    return prompt


def placed(prompt: Prompt, kind: str, value: str) -> Prompt:
    name = {"Index": "indexes", "Spread": "spread"}[kind]
    prompt["method"] = node(f"ACN_SparseCtrl{kind}MethodNode", **{name: value})
    prompt["load"]["inputs"]["sparse_method"] = ["method", 0]
    return prompt


def in_windows(prompt: Prompt) -> Prompt:
    prompt |= dict([windows(context_length=4, overlap=1)])
    prompt["sample"]["inputs"]["model"] = ["windows", 0]
    return prompt


SPARSE: dict[str, tuple[Prompt, Prompt]] = {
    "scribbles at indexes": (placed(sparse(), "Index", "-1, 2, 5"), own_sparse("-1, 2")),
    "rgb, spread": (placed(sparse(RGB), "Spread", "ending"), own_sparse("4, 9", RGB)),
    "by the stock node": (sparse(RGB, "ControlNetApplyAdvanced"), own_sparse("0, 9", RGB)),
    "without its motion": (sparse(use_motion=False), own_sparse("0, 9", motion_strength=0.0)),
    "windows with the nearest": (in_windows(sparse(pictures="a")), in_windows(own_sparse("0", pictures="a"))),
    "windows without": (
        in_windows(sparse(pictures="a", context_aware="off")),
        in_windows(own_sparse("0", pictures="a", nearest_in_windows=False)),
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", SPARSE)
@pytest.mark.usefixtures("files")
def test_sparsectrl_of_advanced_controlnet_makes_the_clip_of_our_own(executor, base: Path, name: str) -> None:
    old, new = SPARSE[name]
    expected = frames(executor, base, new)
    assert (frames(executor, base, replaced(old)) == expected).all()
    assert (frames(executor, base, ours()) != expected).any()


@pytest.mark.slow
@pytest.mark.usefixtures("files")
def test_controlnets_of_advanced_controlnet_and_the_model_beside_them(executor, base: Path) -> None:
    prompt = sparse(apply="ACN_AdvancedControlNetApply", pictures="a")
    prompt["load"] = node("ACN_ControlNetLoaderAdvanced", cnet=STOCK)
    prompt["control"]["inputs"]["model_optional"] = ["apply", 0]
    prompt["sample"]["inputs"]["model"] = ["control", 2]
    stock = sparse(apply="ControlNetApplyAdvanced", pictures="a")
    stock["load"] = node("ControlNetLoader", control_net_name=STOCK)
    assert (frames(executor, base, replaced(prompt)) == frames(executor, base, stock)).all()


@pytest.mark.slow
@pytest.mark.usefixtures("files")
def test_motion_scale_is_that_of_the_attention(executor, base: Path) -> None:
    plain, scaled = (frames(executor, base, replaced(sparse(motion_scale=scale))) for scale in (1.0, 2.0))
    assert (plain != scaled).any()


@pytest.mark.parametrize(
    ("method", "frames", "pictures", "expected"),
    [
        (SparseMethod("uniform"), 16, 3, [0, 7, 15]),
        (SparseMethod("starting"), 16, 2, [0, 7]),
        (SparseMethod("ending"), 16, 1, [15]),
        (SparseMethod("center"), 16, 1, [7]),
        (SparseMethod("center"), 16, 2, [5, 10]),
        (SparseMethod("center"), 4, 2, [0, 1]),
        (SparseMethod("ending"), 3, 5, [0, 1, 2]),
        (SparseMethod(INDEXES, (-1, 20, 3)), 16, 2, [15]),
    ],
)
def test_pictures_get_the_frames_that_advanced_controlnet_gives_them(method, frames, pictures, expected) -> None:
    """As it finds them, read off it."""
    places = method.places(frames, pictures)
    assert [place.frame for place in places] == expected
    assert [place.picture for place in places] == list(range(len(expected)))


def with_control(**changes: Any) -> Prompt:
    prompt = sparse()
    prompt["control"]["inputs"] |= changes
    return prompt | {"mask": node("SolidMask", value=1.0, width=64, height=64)}


def rgb_into_stock() -> Prompt:
    prompt = sparse(RGB)
    prompt["load"] = node("ControlNetLoader", control_net_name=STOCK)
    return prompt


def iterated(kind: str, **options: Any) -> Prompt:
    return theirs(settings(iteration_opts=["times", 0]), ("times", node(kind, iterations=2, **options)), **SETTINGS)


REFUSED: dict[str, Prompt] = {
    "noise_type: expected another one, found empty.*add_noise off": theirs(settings(noise_type="empty"), **SETTINGS),
    r"seed_gen: expected comfy or auto1111, found comfy \[gpu\]": theirs(settings(seed_gen="comfy [gpu]"), **SETTINGS),
    "init_type: expected FreeInit.*found again": iterated("ADE_IterationOptsDefault"),
    "apply_to_1st_iter: expected False, found True": iterated("ADE_IterationOptsFreeInit", apply_to_1st_iter=True),
    "guarantee_steps: expected 1 or 0, found 3": theirs(
        ("key", node("ADE_AnimateDiffKeyframe", start_percent=0.0, guarantee_steps=3)), ad_keyframes=["key", 0]
    ),
    "sparse_hint_mult: expected 1, found 0.5": sparse(sparse_hint_mult=0.5),
    "mask_optional: expected nothing, found a mask": with_control(mask_optional=["mask", 0]),
    "image: expected pictures for a ControlNet, found the output of RGB SparseCtrl": rgb_into_stock(),
    "indexes: expected 2, one for each picture; found 1": placed(sparse(), "Index", "3"),
    "indexes: expected whole numbers with commas between": placed(sparse(), "Index", "0; 3"),
    "sparse-rgb.ckpt is conditioned on pictures.*Connect the": sparse(RGB) | {"pictures": node("LoadImage", image="a.png")},
}  # fmt: skip


@pytest.mark.parametrize("message", REFUSED)
@pytest.mark.usefixtures("files")
def test_what_has_no_counterpart_is_refused(executor, base: Path, message: str) -> None:
    with pytest.raises(RuntimeError, match=message):
        frames(executor, base, replaced(REFUSED[message]))
