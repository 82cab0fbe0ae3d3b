"""Motion-model files of every dialect, made by their real producers or from the published layouts with small widths."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import MotionAdapter, SparseControlNetModel, UNetMotionModel
from safetensors.torch import load_file, save_file
from torch import Tensor

from diffdirector.motion.formats import (
    MotionConfig,
    MotionFormatError,
    Version,
    canonical_key,
    expected_shapes,
    read_motion_model,
)
from diffdirector.motion.identify import FileKind, flatten, identify
from diffdirector.motion.module import load_motion_model
from diffdirector.motion.sparse_formats import read_sparse_ctrl
from diffdirector.tests.host.oracle import diffusers_motion_key
from diffdirector.tests.host.weights import TINY, motion_config, unet_config, unet_state

State = dict[str, Tensor]
Naming = Callable[[State], State]
SITE = "down_blocks.0.motion_modules.0"
BLOCK = f"{SITE}.temporal_transformer.transformer_blocks.0"
DOWN = ("CrossAttnDownBlockMotion", "DownBlockMotion")
SPATIAL = "down_blocks.0.attentions.0.transformer_blocks.0.attn1"
UP = ("UpBlockMotion", "CrossAttnUpBlockMotion")
SMALL: dict[str, Any] = {"block_out_channels": (32, 64), "layers_per_block": 1, "cross_attention_dim": 32}
SD15, SDXL = (32, 64, 64, 64), (32, 64, 96)


def noise(shapes: Mapping[str, tuple[int, ...]]) -> State:
    """Random tensors, all different, except that the attentions of one block share their positional encoding."""
    generator = torch.Generator().manual_seed(0)
    state = {key: torch.randn(shape, generator=generator) for key, shape in shapes.items()}
    shared = {key for key in state if key.endswith("attention_blocks.1.pos_encoder.pe")}
    return state | {key: state[key.replace("blocks.1.pos", "blocks.0.pos")].clone() for key in shared}


def small(version: Version = Version.V2, **changes: Any) -> MotionConfig:
    return motion_config(version, **({"channels": (32, 64), "modules": 1} | changes))


def motion(version: Version = Version.V2, **changes: Any) -> State:
    return noise(expected_shapes(small(version, **changes)))


def renoised(model: torch.nn.Module) -> State:
    state = noise({key: tuple(value.shape) for key, value in model.state_dict().items()})
    model.load_state_dict(state)
    return state


def without_positions(state: State) -> State:
    return {key: value for key, value in state.items() if not key.endswith(".pe")}


def assert_same(found: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> None:
    assert set(found) == set(wanted)
    assert [key for key in wanted if not torch.equal(found[key].float(), wanted[key].float())] == []


def refusal(state: Mapping[str, Any], metadata: Mapping[str, str] | None = None) -> str:
    with pytest.raises(MotionFormatError) as caught:
        read_motion_model(state, metadata)
    return str(caught.value)


def load_refusal(path: Path) -> str:
    with pytest.raises(MotionFormatError) as caught:
        load_motion_model(str(path))
    assert path.name in str(caught.value)
    return str(caught.value)


def prefixed(prefix: str) -> Naming:
    return lambda state: {prefix + key: value for key, value in state.items()}


def diffusers(state: State) -> State:
    return {diffusers_motion_key(key): value for key, value in state.items()}


def hotshot(state: State) -> State:
    for old, new in (("motion_modules", "temporal_attentions"), ("temporal_transformer.", ""), (".pe", ".positional_encoding")):  # fmt: skip
        state = {key.replace(old, new): value for key, value in state.items()}
    return state


both_namings = pytest.mark.parametrize("naming", [dict, diffusers], ids=["original", "diffusers"])
DIALECTS: dict[str, Callable[[State], Mapping[str, Any]]] = {
    "original": dict,
    "module.": prefixed("module."),
    "unet.": prefixed("unet."),
    "both prefixes": prefixed("module.unet."),
    "training": lambda state: {"epoch": 3, "global_step": 100, "state_dict": prefixed("module.")(state)},
    "animatediff_config": lambda state: state | {"animatediff_config": {"use_motion_module": True}},
    "diffusers": diffusers,
    "diffusers, training": lambda state: {"state_dict": prefixed("module.")(diffusers(state))},
    "reversed": lambda state: dict(reversed(state.items())),
}


@pytest.mark.parametrize("dialect", DIALECTS)
def test_every_dialect_reads_as_the_same_model(dialect: str) -> None:
    wanted = motion()
    file = DIALECTS[dialect](wanted)
    before = list(file)
    config, state = read_motion_model(file)
    assert config == small() and list(file) == before
    assert_same(state, wanted)


@pytest.mark.parametrize("prefix", ["_orig_mod.", "model.diffusion_model.", "pipe.unet."])
def test_modules_under_another_prefix_are_read_or_refused_but_never_lost(prefix: str) -> None:
    try:
        config, state = read_motion_model(prefixed(prefix)(motion()))
    except MotionFormatError:
        return
    assert config == small()
    assert_same(state, motion())


@both_namings
@pytest.mark.parametrize(
    ("version", "channels", "frames", "across"),
    [(Version.V1, SD15, 24, True), (Version.V2, SD15, 32, False), (Version.V3, SD15, 32, False), (Version.SDXL, SDXL, 32, False)],
)  # fmt: skip
def test_version_and_shape_come_from_the_content(
    version: Version, channels: tuple[int, ...], frames: int, across: bool, naming: Naming
) -> None:
    wanted = motion(version, channels=channels, modules=2)
    config, state = read_motion_model(naming(wanted))
    assert (config.version, config.max_frames, config.norm_across_frames) == (version, frames, across)
    assert config.down_channels == channels and config.heads == 8
    assert set(config.sites) == {key.split(".temporal_transformer")[0] for key in wanted}
    assert_same(state, wanted)


@pytest.mark.parametrize("whole_unet", [True, False])
def test_hotshot(whole_unet: bool) -> None:
    wanted = motion(Version.HOTSHOT, channels=SDXL, modules=2)
    spatial = {"conv_in.weight": torch.zeros(32, 4, 3, 3), "down_blocks.0.attentions.0.norm.weight": torch.zeros(32)}
    config, state = read_motion_model(hotshot(wanted) | (spatial if whole_unet else {}))
    assert config.version is Version.HOTSHOT and config.norm_across_frames and config.max_frames == 24
    assert_same(state, wanted)


@pytest.mark.parametrize("heads", [None, 4])
@pytest.mark.parametrize("shape", [{}, {"motion_transformer_layers_per_block": 2}, {"motion_max_seq_length": 20},
                                   {"use_motion_mid_block": False}, {"motion_layers_per_block": 3}])  # fmt: skip
def test_diffusers_adapter_from_its_own_writer(tmp_path: Path, shape: dict[str, Any], heads: int | None) -> None:
    adapter = MotionAdapter(block_out_channels=(32, 64), **({"motion_layers_per_block": 1} | shape))
    saved = renoised(adapter)
    adapter.save_pretrained(tmp_path)
    file = load_file(tmp_path / "diffusion_pytorch_model.safetensors")
    config, state = read_motion_model(file, {"num_attention_heads": str(heads)} if heads else None)
    assert config.heads == (heads or 8) and config.max_frames == shape.get("motion_max_seq_length", 32)
    assert config.sites[SITE].depth == shape.get("motion_transformer_layers_per_block", 1)
    assert {diffusers_motion_key(key) for key in state} == set(saved)
    assert_same(state, {key: saved[diffusers_motion_key(key)] for key in expected_shapes(config)})


@pytest.mark.parametrize("heads", ["0", "-8", "3", "eight"])
def test_a_head_count_that_cannot_be_is_refused(heads: str) -> None:
    assert "heads" in refusal(motion(), {"num_attention_heads": heads})


@pytest.fixture(scope="module")
def unet() -> UNetMotionModel:
    shape = {"motion_max_seq_length": 32, "num_attention_heads": 4, "sample_size": 8}
    return UNetMotionModel(**SMALL, **shape, down_block_types=DOWN, up_block_types=UP)


@pytest.mark.parametrize("whole", [True, False])
def test_diffusers_unet_from_its_own_writer(tmp_path: Path, unet: UNetMotionModel, whole: bool) -> None:
    saved = renoised(unet)
    (unet.save_pretrained if whole else unet.save_motion_modules)(str(tmp_path))
    handle = load_motion_model(str(tmp_path / "diffusion_pytorch_model.safetensors"))
    wanted = {key: saved[diffusers_motion_key(key)] for key in expected_shapes(small())}
    assert_same(handle.patcher.model.state_dict(), wanted)


def test_whole_unet_of_a_training_run(unet: UNetMotionModel) -> None:
    spatial = {key: value for key, value in unet.state_dict().items() if "motion_modules" not in key}
    config, state = read_motion_model({"state_dict": prefixed("module.")(spatial | motion(Version.V3))})
    assert config == small(Version.V3)
    assert_same(state, motion(Version.V3))


@pytest.mark.parametrize("suffix", [".safetensors", ".ckpt", ".pt", ".pth", ".bin"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn], ids=str)
def test_files_keep_their_values_whatever_their_name(tmp_path: Path, suffix: str, dtype: torch.dtype) -> None:
    wanted = {key: value.to(dtype) for key, value in motion(Version.V3).items()}
    path = tmp_path / f"mm_sd_v15_v2{suffix}"
    if suffix == ".safetensors":
        save_file(wanted, path)
    else:
        torch.save({"global_step": 1, "state_dict": prefixed("module.")(wanted)}, path)
    handle = load_motion_model(str(path))
    assert handle.config == small(Version.V3)
    assert_same(handle.patcher.model.state_dict(), wanted)


@both_namings
@pytest.mark.parametrize("sites", [("down_blocks",), ("down_blocks", "mid_block")], ids=["down", "down and mid"])
def test_encoder_only(naming: Naming, sites: tuple[str, ...]) -> None:
    wanted = {key: value for key, value in motion().items() if key.startswith(sites)}
    config, state = read_motion_model(naming(wanted))
    assert {site.split(".")[0] for site in config.sites} == set(sites)
    assert_same(state, wanted)


@both_namings
@pytest.mark.parametrize("flat", [True, False])
@pytest.mark.parametrize("length", [16, 48])
def test_stored_positions_of_any_length(length: int, flat: bool, naming: Naming) -> None:
    wanted = motion(max_frames=length)
    file = naming(wanted)
    if flat:
        file = {key: value[0] if key.endswith(".pe") else value for key, value in file.items()}
    config, state = read_motion_model(file)
    assert config.max_frames == length and config.stored_positions
    assert_same(state, wanted)


@both_namings
@pytest.mark.parametrize("version", [Version.V2, Version.V3, Version.SDXL, Version.LCM])
def test_missing_positions_are_computed(version: Version, naming: Naming) -> None:
    wanted = without_positions(motion(version, channels=SDXL if version is Version.SDXL else SD15))
    config, state = read_motion_model(naming(wanted))
    assert not config.stored_positions and config.max_frames >= 32
    assert version not in (Version.SDXL, Version.LCM) or config.version is version
    assert set(state) == set(expected_shapes(config)) and len(state) > len(wanted)
    assert_same(without_positions(state), wanted)
    for key in set(state) - set(wanted):
        width = state[key].shape[2]
        angle = torch.arange(config.max_frames)[:, None] / 10000 ** (torch.arange(0, width, 2) / width)
        torch.testing.assert_close(state[key], torch.stack([angle.sin(), angle.cos()], -1).flatten(1)[None])


@pytest.mark.parametrize(
    ("key", "change"),
    [
        (f"{BLOCK}.attention_blocks.1.to_k.weight", None),
        (f"{BLOCK}.attention_blocks.1.pos_encoder.pe", None),
        (f"{SITE}.temporal_transformer.proj_in.weight", None),
        (f"{SITE}.temporal_transformer.proj_out.bias", None),
        (f"{BLOCK}.attention_blocks.0.to_surprise.weight", torch.zeros(32, 32)),
        (f"{BLOCK}.attention_blocks.0.to_v.weight", torch.zeros(32, 16)),
        (f"{BLOCK}.norms.1.weight", torch.zeros(64)),
        (f"{BLOCK}.attention_blocks.0.pos_encoder.pe", torch.zeros(1, 32, 16)),
        (f"{BLOCK}.attention_blocks.0.pos_encoder.pe", torch.zeros(32)),
        (f"{SITE}.temporal_transformer.norm.weight", torch.zeros(())),
    ],
)
def test_what_is_missing_surplus_or_misshapen_is_named(key: str, change: Tensor | None) -> None:
    state = motion()
    state.pop(key, None)
    assert key in refusal(state if change is None else state | {key: change})


@pytest.mark.parametrize(
    ("key", "canonical"),
    [
        (f"module.{BLOCK}.norms.1.bias", f"{BLOCK}.norms.1.bias"),
        (f"{SITE}.transformer_blocks.0.attn2.to_out.0.bias", f"{BLOCK}.attention_blocks.1.to_out.0.bias"),
        (f"unet.{SITE}.transformer_blocks.0.norm3.weight", f"{BLOCK}.ff_norm.weight"),
        ("mid_block.motion_modules.0.norm.weight", "mid_block.motion_modules.0.temporal_transformer.norm.weight"),
        (f"{SPATIAL}.to_q.weight", None),
        ("conv_in.weight", None),
    ],
)
def test_canonical_key(key: str, canonical: str | None) -> None:
    assert canonical_key(key) == canonical


def zeros(*keys: str) -> State:
    return {key: torch.zeros(1) for key in keys}


def lora(layer: str) -> State:
    return zeros(f"{layer}.processor.to_q_lora.down.weight", f"{layer}.processor.to_q_lora.up.weight")


def sparsectrl(embedding: str) -> State:
    down = {key: value for key, value in motion(Version.V3).items() if key.startswith("down_blocks")}
    return down | zeros("conv_in.weight", "controlnet_down_blocks.0.weight", f"controlnet_cond_embedding.{embedding}")


def diffusers_sparsectrl() -> State:
    return SparseControlNetModel(
        **SMALL, down_block_types=DOWN, transformer_layers_per_block=(1, 1), num_attention_heads=4,
        motion_num_attention_heads=4, conditioning_embedding_out_channels=(16, 32),
    ).state_dict()  # fmt: skip


def pia() -> State:
    return MotionAdapter((32, 64), motion_layers_per_block=1, conv_in_channels=9).state_dict()


def ldm_unet() -> State:
    return unet_state(unet_config("sd15", **TINY, model_channels=32, context_dim=32))


def checkpoint() -> Mapping[str, Any]:
    return {
        "state_dict": prefixed("model.diffusion_model.")(ldm_unet()) | zeros("first_stage_model.decoder.conv_in.bias")
    }


def image_unet() -> State:
    model = UNetMotionModel(**SMALL, num_attention_heads=4, down_block_types=DOWN, up_block_types=UP)
    return {key: value for key, value in model.state_dict().items() if "motion_modules" not in key}


CAMERACTRL = {
    "attention_processor_state_dict": zeros(f"{BLOCK}.attention_blocks.0.processor.qkv_merge.weight"),
    "pose_encoder_state_dict": zeros("encoder_conv_in.weight"),
}
PIA_CONVOLUTION = {"conv_in.weight": torch.zeros(32, 9, 3, 3)}
IP_ADAPTER = {"image_proj": zeros("proj.weight"), "ip_adapter": zeros("1.to_k_ip.weight")}
FOREIGN: dict[str, tuple[FileKind, Callable[[], Mapping[str, Any]], str]] = {
    "MotionLoRA": (FileKind.MOTION_LORA, lambda: lora(f"{BLOCK}.attention_blocks.0"), "MotionLoRA|models/animatediff_motion_lora"),
    "domain adapter": (FileKind.SPATIAL_LORA, lambda: {"state_dict": lora(SPATIAL)}, "domain adapter|Domain Adapter|models/loras"),
    "SparseCtrl, RGB": (FileKind.SPARSECTRL, lambda: {"controlnet": sparsectrl("weight")}, "SparseCtrl|models/controlnet"),
    "SparseCtrl, scribble": (FileKind.SPARSECTRL, lambda: {"state_dict": prefixed("module.")(sparsectrl("conv_in.weight"))}, "SparseCtrl"),
    "SparseCtrl, diffusers": (FileKind.SPARSECTRL, diffusers_sparsectrl, "SparseCtrl|models/controlnet"),
    "AnimateLCM-I2V": (FileKind.LCM_I2V, lambda: motion(Version.LCM) | zeros("img_encoder.conv_in.weight"), "AnimateLCM-I2V|animate a picture, PIA"),
    "CameraCtrl": (FileKind.CAMERACTRL, lambda: CAMERACTRL | {"epoch": 1}, "CameraCtrl|Use a MotionLoRA"),
    "CameraCtrl, pruned": (FileKind.CAMERACTRL, lambda: CAMERACTRL["attention_processor_state_dict"] | zeros("encoder.x"), "CameraCtrl"),
    "FancyVideo": (FileKind.FANCYVIDEO, lambda: motion() | zeros("FancyVideo") | PIA_CONVOLUTION, "FancyVideo|not supported|animate a picture, PIA"),
    "ControlNet": (FileKind.CONTROLNET, lambda: zeros("controlnet_down_blocks.0.weight", f"{SPATIAL}.to_q.weight"), "ControlNet|models/controlnet"),
    "ControlNet, LDM": (FileKind.CONTROLNET, lambda: zeros("control_model.input_hint_block.0.weight"), "ControlNet"),
    "checkpoint": (FileKind.CHECKPOINT, checkpoint, "checkpoint|models/checkpoints"),
    "UNet, LDM": (FileKind.UNET, ldm_unet, "UNet|models/diffusion_models"),
    "UNet, diffusers": (FileKind.UNET, image_unet, "UNet|models/diffusion_models"),
    "VAE": (FileKind.VAE, lambda: zeros("encoder.conv_in.weight", "decoder.conv_in.weight"), "VAE|models/vae"),
    "text encoder": (FileKind.TEXT_ENCODER, lambda: zeros("text_model.embeddings.token_embedding.weight"), "text encoder|models/text_encoders"),
    "IP-Adapter": (FileKind.IP_ADAPTER, lambda: IP_ADAPTER, "IP-Adapter"),
    "embedding": (FileKind.EMBEDDING, lambda: {"string_to_token": {"*": 265}, "string_to_param": zeros("*"), "name": "x"}, "embedding|models/embeddings"),
    "empty": (FileKind.EMPTY, dict, "without any tensor|get the file again"),
    "empty state_dict": (FileKind.EMPTY, lambda: {"epoch": 1, "state_dict": {}}, "without any tensor"),
    "tensors in an unknown folder": (FileKind.UNKNOWN, lambda: {"ema_weights": zeros("a.weight")}, "does not know|right file"),
    "unknown": (FileKind.UNKNOWN, lambda: zeros("a", "b.c"), "does not know|right file"),
    "numbered": (FileKind.UNKNOWN, lambda: {0: torch.zeros(1)}, "does not know"),
}  # fmt: skip


@pytest.mark.parametrize("name", FOREIGN)
def test_other_files_are_named_for_what_they_are(tmp_path: Path, name: str) -> None:
    kind, make, words = FOREIGN[name]
    state = make()
    path = tmp_path / "mm_sd_v15_v2.ckpt"
    torch.save(state, path)
    message = load_refusal(path)
    assert [word for word in words.split("|") if word not in message] == [], message
    assert identify(flatten(state)) is kind


@pytest.mark.parametrize(
    "make",
    [
        lambda: motion() | PIA_CONVOLUTION,
        lambda: {"state_dict": prefixed("module.")(pia())},
    ],
    ids=["original", "diffusers"],
)
def test_a_pia_is_told_from_other_motion_models(make: Callable[[], Mapping[str, Any]]) -> None:
    file = make()
    assert identify(flatten(file)) is FileKind.PIA
    config, state = read_motion_model(file)
    assert config.version is Version.PIA and config.norm_across_frames and state["conv_in.weight"].shape[1] == 5
    assert_same(state, {key: state[key] for key in expected_shapes(config)})
    with pytest.raises(MotionFormatError, match="this is a PIA motion model.*Load it with Load Motion Model"):
        read_sparse_ctrl(file)


DAMAGE: dict[str, Callable[[bytes], bytes]] = {
    "half": lambda content: content[: len(content) // 2],
    "head": lambda content: content[:100],
    "empty": lambda content: b"",
    "web page": lambda content: b"<!DOCTYPE html><html>Not found</html>",
    "LFS pointer": lambda content: b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n",
}


@pytest.mark.parametrize("suffix", [".safetensors", ".ckpt"])
@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_files_are_refused_with_advice(tmp_path: Path, suffix: str, damage: str) -> None:
    path = tmp_path / f"motion{suffix}"
    (save_file if suffix == ".safetensors" else torch.save)(motion(), path)
    path.write_bytes(DAMAGE[damage](path.read_bytes()))
    message = load_refusal(path)
    assert "again" in message or "no model file" in message, message


@pytest.mark.parametrize("content", [b"<!DOCTYPE html>", pickle.dumps({"path": Path("x")})], ids=["text", "pickle"])
def test_a_refusal_does_not_advise_to_lift_the_protection(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "motion.ckpt"
    path.write_bytes(content)
    assert "weights_only" not in load_refusal(path)


def test_a_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    load_refusal(tmp_path / "absent.safetensors")


class Payload:
    """Unpickling it creates a file."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.target,)


@pytest.mark.parametrize("plain", [True, False], ids=["pickle", "torch.save"])
@pytest.mark.parametrize("suffix", [".ckpt", ".pt", ".pth", ".bin", ".safetensors"])
def test_code_in_a_pickle_is_not_run(tmp_path: Path, suffix: str, plain: bool) -> None:
    path, target = tmp_path / f"motion{suffix}", tmp_path / "executed"
    content = {"state_dict": zeros("a"), "hyper_parameters": Payload(target)}
    if plain:
        path.write_bytes(pickle.dumps(content))
    else:
        torch.save(content, path)
    message = load_refusal(path)
    assert not target.exists() and ("safetensors" in message or "again" in message)
    if plain:
        pickle.loads(path.read_bytes())
    else:
        torch.load(path, weights_only=False)
    assert target.exists(), "the payload is harmless, so this test proves nothing"
