"""For each help page the piece of graph that its picture shows: the node, what usually goes into it, and what takes it."""

from __future__ import annotations

from typing import Any, NamedTuple

Neighbour = tuple[str, dict[str, Any], dict[str, str]]  # type, values, output of the one -> input of the other


class Picture(NamedTuple):
    values: dict[str, Any] = {}
    sources: tuple[Neighbour, ...] = ()
    targets: tuple[Neighbour, ...] = ()
    run: float = 0  # seconds that it may run for, where that makes the node show something


SHORT, LONG = 240, 90  # what ends by itself; a training, which does not

CHECKPOINT, MOTION_MODEL, CLIP, PHOTO = (
    "v1-5-pruned-emaonly-fp16.safetensors",
    "mm_sd_v15_v2.ckpt",
    "my-clip.mp4",
    "photo.png",
)
SPARSECTRL, ADAPTER, PIA = "v3_sd15_sparsectrl_rgb.ckpt", "v3_sd15_adapter.ckpt", "pia.ckpt"
ZOOM, PAN = "v2_lora_ZoomIn.ckpt", "v2_lora_PanLeft.ckpt"
APPLY, LORA = "DiffDirectorApplyMotionModel", "DiffDirectorMotionLora"


def checkpoint(**links: str) -> Neighbour:
    return "CheckpointLoaderSimple", {"ckpt_name": CHECKPOINT}, links


def motion_model(name: str = MOTION_MODEL) -> Neighbour:
    return "DiffDirectorLoadMotionModel", {"motion_model_name": name}, {"motion_model": "motion_model"}


def applied() -> Neighbour:
    return APPLY, {}, {"MODEL": "model"}


def sampler() -> Neighbour:
    return "KSampler", {"cfg": 7.5, "scheduler": "normal"}, {"MODEL": "model"}


def prompt(text: str, into: str) -> Neighbour:
    return "CLIPTextEncode", {"text": text}, {"CONDITIONING": into}


def photo(into: str) -> Neighbour:
    return "LoadImage", {"image": PHOTO}, {"IMAGE": into}


def footage(**links: str) -> Neighbour:
    return "DiffDirectorLoadFootage", {"video": CLIP, "frames": 16}, links


def saved(**values: Any) -> Neighbour:
    return "DiffDirectorSaveAnimation", {"filename_prefix": "my-animation"} | values, {"images": "images"}


def training() -> tuple[Neighbour, ...]:
    clip = {"source": CLIP, "caption": "a red circle moving right", "width": 64, "height": 64}
    dataset = ("DiffDirectorVideoDataset", clip, {"dataset": "dataset"})
    return checkpoint(MODEL="model", CLIP="clip", VAE="vae"), motion_model(), dataset


SEASONS = "0: a forest in spring\n8: the same forest in summer\n-1: the same forest in winter"

PICTURES = {
    "DiffDirectorLoadMotionModel": Picture(
        {"motion_model_name": MOTION_MODEL}, targets=((APPLY, {}, {"motion_model": "motion_model"}),)
    ),
    "DiffDirectorApplyMotionModel": Picture({}, (checkpoint(MODEL="model"), motion_model()), (sampler(),)),
    "DiffDirectorMotionLora": Picture(
        {"lora_name": ZOOM, "strength": 0.8},
        ((LORA, {"lora_name": PAN, "strength": 0.6}, {"motion_lora": "motion_lora"}),),
        ((APPLY, {}, {"motion_lora": "motion_lora"}),),
    ),
    "DiffDirectorMergeMotionLora": Picture(
        {"weight_1": 0.7, "weight_2": 0.5},
        tuple((LORA, {"lora_name": name}, {"motion_lora": f"motion_lora_{number}"}) for number, name in ((1, ZOOM), (2, PAN))),
        (("DiffDirectorSaveMotionLora", {"filename_prefix": "zoom-and-pan"}, {"motion_lora": "motion_lora"}),),
    ),
    "DiffDirectorSaveMotionLora": Picture(
        {"filename_prefix": "camera/zoom", "dialect": "diffusers"},
        ((LORA, {"lora_name": ZOOM}, {"motion_lora": "motion_lora"}),),
    ),
    "DiffDirectorMotionStrength": Picture(
        {"strength": 1.2},
        (("DiffDirectorCurve", {"curve": "0: 0.5, 8: 1.0, -1: 0.5"}, {"curve": "frames_curve"}),),
        ((APPLY, {}, {"motion_strength": "motion_strength"}),),
    ),
    "DiffDirectorDomainAdapter": Picture(
        {"adapter_name": ADAPTER}, (checkpoint(MODEL="model"),), ((APPLY, {}, {"MODEL": "model"}),)
    ),
    "DiffDirectorContextWindows": Picture({"plan_frames": 48}, (applied(),), (sampler(),)),
    "DiffDirectorVideoDataset": Picture(
        {"source": CLIP, "caption": "a red circle moving right on a white background", "width": 64, "height": 64},
        targets=(("DiffDirectorTrainMotionDirector", {"steps": 300}, {"dataset": "dataset"}),),
        run=SHORT,
    ),
    "DiffDirectorTrainMotionModule": Picture({"name": "my-module", "steps": 2000}, training(), run=LONG),
    "DiffDirectorTrainMotionDirector": Picture(
        {"name": "my-motion", "sample_prompt": "a blue square on a black background", "sample_every": 20}, training(), run=LONG
    ),
    "DiffDirectorMotionDirectorSettings": Picture(
        {}, targets=(("DiffDirectorTrainMotionDirector", {}, {"settings": "settings"}),)
    ),
    "DiffDirectorPromptTravel": Picture(
        {"prompts": SEASONS, "frames": 16}, (checkpoint(CLIP="clip"),), 
        (("KSampler", {}, {"CONDITIONING": "positive"}), ("PreviewImage", {}, {"plan": "images"})), run=SHORT
    ),
    "DiffDirectorCurve": Picture(
        {"curve": "0: 0.2, 8: 1.0, -1: 0.4", "interpolation": "ease", "frames": 16},
        targets=(("DiffDirectorMotionStrength", {}, {"curve": "frames_curve"}),),
        run=SHORT,
    ),
    "DiffDirectorCurveFromList": Picture(
        {},
        (("DiffDirectorListFromText", {"text": "0.5\n0.8\n1.2\n1.4\n1.0\n0.7\n0.9\n1.3"}, {"numbers": "values"}),),
        (("DiffDirectorMotionStrength", {}, {"curve": "frames_curve"}),),
        run=SHORT,
    ),
    "DiffDirectorFreeInit": Picture({}, (applied(),), (sampler(),)),
    "DiffDirectorClipNoise": Picture({"kind": "repeated"}, (applied(),), (sampler(),)),
    "DiffDirectorFewSteps": Picture(
        {}, (applied(),),
        (("KSampler", {}, {"MODEL": "model", "steps": "steps", "cfg": "cfg", "sampler_name": "sampler_name", "scheduler": "scheduler"}),),
    ),
    "DiffDirectorLoadFootage": Picture(
        {"video": CLIP, "frames": 16}, targets=(("VAEEncode", {}, {"images": "pixels"}), saved(frame_rate=8.0)), run=SHORT
    ),
    "DiffDirectorAnchorFrames": Picture(
        {"indices": "0, -1"},
        (photo("images"), checkpoint(VAE="vae"), ("EmptyLatentImage", {"batch_size": 16}, {"LATENT": "latent"})),
        (("KSampler", {}, {"latent": "latent_image"}),),
    ),
    "DiffDirectorLoopClip": Picture({}, (footage(images="images"),), (saved(),), run=SHORT),
    "DiffDirectorSaveAnimation": Picture(
        {"filename_prefix": "my-animation"}, (footage(images="images", frame_rate="frame_rate"),), run=SHORT
    ),
    "DiffDirectorClipGrid": Picture(
        {"columns": 1, "column_labels": "seed 1"},
        (footage(images="images"),), (saved(),), run=SHORT,
    ),
    "DiffDirectorListFromText": Picture(
        {"text": "1\n2\n3"}, targets=(("KSampler", {}, {"integers": "seed"}), ("DiffDirectorClipGrid", {}, {"texts": "column_labels"}))
    ),
    "DiffDirectorLoadSparseCtrl": Picture(
        {"control_net_name": SPARSECTRL}, targets=(("DiffDirectorApplySparseCtrl", {}, {"control_net": "control_net"}),)
    ),
    "DiffDirectorApplySparseCtrl": Picture(
        {"indices": "0"},
        (
            prompt("a boat on a lake, waves", "positive"), prompt("blurry", "negative"),
            ("DiffDirectorLoadSparseCtrl", {"control_net_name": SPARSECTRL}, {"control_net": "control_net"}), photo("images"),
        ),
        (("KSampler", {}, {"positive": "positive", "negative": "negative"}),),
    ),
    "DiffDirectorScribblePreprocessor": Picture(
        {"method": "canny"}, (photo("images"),), (("PreviewImage", {}, {"scribbles": "images"}),), run=SHORT
    ),
    "DiffDirectorPIA": Picture(
        {},
        (("DiffDirectorApplyMotionModel", {}, {"MODEL": "model"}), checkpoint(VAE="vae"), photo("image")),
        (sampler(),),
    ),
    "DiffDirectorEvolvedLoader": Picture({"model_name": MOTION_MODEL}, (checkpoint(MODEL="model"),), (sampler(),)),
    "DiffDirectorEvolvedApply": Picture(
        {}, (motion_model(),), (("DiffDirectorEvolvedSampling", {}, {"m_models": "m_models"}),)
    ),
    "DiffDirectorEvolvedSampling": Picture(
        {}, (checkpoint(MODEL="model"), ("DiffDirectorEvolvedApply", {}, {"m_models": "m_models"})), (sampler(),)
    ),
    "DiffDirectorEvolvedContextOptions": Picture(
        {}, targets=(("DiffDirectorEvolvedSampling", {}, {"context_opts": "context_options"}),)
    ),
    "DiffDirectorEvolvedMultival": Picture(
        {"float_val": 1.2}, targets=(("DiffDirectorEvolvedApply", {}, {"multival": "scale_multival"}),)
    ),
    "DiffDirectorEvolvedViewOptions": Picture(
        {}, targets=(("DiffDirectorEvolvedContextOptions", {}, {"view_opts": "view_opts"}),)
    ),
    "DiffDirectorEvolvedKeyframe": Picture(
        {"start_percent": 0.5},
        (("DiffDirectorEvolvedMultival", {"float_val": 0.8}, {"multival": "scale_multival"}),),
        (("DiffDirectorEvolvedApply", {}, {"ad_keyframes": "ad_keyframes"}),),
    ),
    "DiffDirectorEvolvedSampleSettings": Picture(
        {"noise_type": "FreeNoise"}, targets=(("DiffDirectorEvolvedSampling", {}, {"settings": "sample_settings"}),)
    ),
    "DiffDirectorEvolvedIterations": Picture(
        {}, targets=(("DiffDirectorEvolvedSampleSettings", {}, {"iteration_opts": "iteration_opts"}),)
    ),
    "DiffDirectorAdvancedSparseLoader": Picture(
        {"sparsectrl_name": SPARSECTRL},
        (("DiffDirectorAdvancedSparseMethod", {}, {"sparse_method": "sparse_method"}),),
        (("DiffDirectorAdvancedApply", {}, {"control_net": "control_net"}),),
    ),
    "DiffDirectorAdvancedSparseMethod": Picture(
        {"indexes": "0, -1"},
        targets=(("DiffDirectorAdvancedSparseLoader", {"sparsectrl_name": SPARSECTRL}, {"sparse_method": "sparse_method"}),),
    ),
    "DiffDirectorAdvancedSparsePictures": Picture(
        {}, (photo("image"), checkpoint(VAE="vae")), (("DiffDirectorAdvancedApply", {}, {"proc_image": "image"}),)
    ),
    "DiffDirectorAdvancedApply": Picture(
        {},
        (
            ("DiffDirectorAdvancedSparseLoader", {"sparsectrl_name": SPARSECTRL}, {"control_net": "control_net"}),
            ("DiffDirectorAdvancedSparsePictures", {}, {"proc_image": "image"}),
        ),
        (("KSampler", {}, {"positive": "positive", "negative": "negative"}),),
    ),
    "DiffDirectorTrainSparseCtrl": Picture({"name": "my-sparsectrl", "steps": 2000}, training(), run=LONG),
    "DiffDirectorTrainDomainAdapter": Picture(
        {"name": "my-adapter", "steps": 2000}, training()[::2], run=LONG
    ),
    "DiffDirectorTrainMotionLora": Picture({"name": "my-camera-move", "steps": 2000}, training(), run=LONG),
}  # fmt: skip
