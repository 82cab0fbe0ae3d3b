"""MotionLoRA files that we write: other software's own loaders, or the rules they name layers by, read the same deltas."""

from __future__ import annotations

import logging
from pathlib import Path

import comfy.lora
import pytest
import torch
from diffusers import AnimateDiffPipeline, UNetMotionModel
from peft.tuners.lora import LoraLayer as PeftLayer
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import Linear

from diffdirector.lora.formats import (
    ANIMATEDIFF,
    DIALECTS,
    DIFFUSERS,
    LoraFormatError,
    LoraLayer,
    lora_state,
    motion_lora_state,
    read_lora,
)
from diffdirector.lora.layers import TrainableLora
from diffdirector.lora.patches import MotionLora, load_lora, merge_motion_loras
from diffdirector.motion.formats import canonical_key
from diffdirector.motion.identify import FileKind
from diffdirector.tests.host.checkpoints import tiny_motion_config
from diffdirector.tests.host.weights import TINY, load_unet, motion_state, unet_config, unet_state
from diffdirector.trainers import host
from diffdirector.trainers.checkpoint import save_tensors
from diffdirector.trainers.config import MotionDirectorConfig

Layers = dict[str, LoraLayer]
TARGETS = ("to_q", "to_k", "to_v", "to_out.0", "ff.net.0.proj", "ff.net.2", "proj_in", "proj_out")


def flat(path: str) -> str:
    return path.replace("temporal_transformer.", "").replace(".", "_")


def delta(layer: LoraLayer) -> Tensor:
    return layer.up @ layer.down * (1.0 if layer.alpha is None else layer.alpha / layer.rank)


def motion_layers(unet: UNetMotionModel, targets: tuple[str, ...] = TARGETS) -> dict[str, torch.nn.Module]:
    """Canonical path -> layer of diffusers' motion modules."""
    paths = {
        (canonical_key(f"{name}.weight") or "").removesuffix(".weight"): module
        for name, module in unet.named_modules()
        if "motion_modules" in name and name.endswith(targets)
    }
    assert len(paths) > 30
    return paths


def made(weights: dict[str, torch.nn.Module], rank: int, alpha: float | None = None) -> Layers:
    generator = torch.Generator().manual_seed(rank)
    return {
        flat(path): LoraLayer(
            torch.randn(module.weight.shape[0], rank, generator=generator),
            torch.randn(rank, module.weight.shape[1], generator=generator),
            alpha,
        )
        for path, module in weights.items()
    }


def loaded_by_diffusers(unet: UNetMotionModel, path: Path) -> dict[str, Tensor]:
    """What diffusers' pipeline adds to each weight after reading a file, by our layer names."""
    parts = dict.fromkeys(("vae", "text_encoder", "tokenizer", "motion_adapter", "scheduler"))
    pipeline = AnimateDiffPipeline(unet=unet, **parts)
    pipeline.load_lora_weights(str(path.parent), weight_name=path.name, adapter_name="read")
    found = {}
    for name, module in unet.named_modules():
        if isinstance(module, PeftLayer):
            canonical = canonical_key(f"{name}.weight") or f"{name}.weight"
            found[flat(canonical.removesuffix(".weight"))] = module.get_delta_weight("read")
    return found


def assert_deltas(found: dict[str, Tensor], layers: Layers) -> None:
    assert set(found) == set(layers)
    for name, layer in layers.items():
        torch.testing.assert_close(found[name], delta(layer), msg=lambda text, name=name: f"{name}: {text}")


def saved(path: Path, layers: Layers, dialect: str) -> Path:
    save_tensors(path, motion_lora_state(layers, dialect), {"sources": "[]"})
    return path


@pytest.mark.parametrize("alpha", [None, 2.0])
def test_diffusers_reads_what_was_an_original_file(tmp_path: Path, unet: UNetMotionModel, alpha: float | None) -> None:
    layers = made(motion_layers(unet), 4, alpha)
    one = merge_motion_loras([MotionLora("zoom", layers, 1.0)]).layers
    original = saved(tmp_path / "original.safetensors", dict(one), ANIMATEDIFF)
    read = load_lora(str(original), "original", FileKind.MOTION_LORA)
    converted = saved(tmp_path / "converted.safetensors", read, DIFFUSERS)
    assert_deltas(loaded_by_diffusers(unet, converted), layers)


def test_diffusers_reads_layers_of_several_ranks(tmp_path: Path, unet: UNetMotionModel) -> None:
    """Of one rank in the file: diffusers 0.30 to 0.35 scale the others wrongly."""
    attention = made(motion_layers(unet, TARGETS[:4]), 4)
    everything = made(motion_layers(unet), 3, alpha=6.0)
    summed = merge_motion_loras([MotionLora("a", attention, 0.5), MotionLora("b", everything, -1.5)]).layers
    path = saved(tmp_path / "sum.safetensors", dict(summed), DIFFUSERS)
    state = load_file(path)
    assert {min(value.shape) for value in state.values()} == {7}
    assert not [key for key in state if "alpha" in key]
    wanted = {name: -1.5 * delta(layer) for name, layer in everything.items()}
    wanted |= {name: wanted[name] + 0.5 * delta(layer) for name, layer in attention.items()}
    found = loaded_by_diffusers(unet, path)
    assert set(found) == set(wanted)
    for name, value in wanted.items():
        torch.testing.assert_close(found[name], value, rtol=1e-5, atol=1e-5)


def test_diffusers_reads_a_trained_motion_after_conversion(tmp_path: Path, unet: UNetMotionModel) -> None:
    path = trained(tmp_path / "trained.safetensors", motion_layers(unet))
    read = load_lora(str(path), "trained", FileKind.MOTION_LORA)
    converted = saved(tmp_path / "converted.safetensors", read, DIFFUSERS)
    found = loaded_by_diffusers(unet, converted)
    assert len(found) == len(motion_layers(unet).keys())
    assert_deltas(found, read)


def trained(path: Path, layers: dict[str, torch.nn.Module]) -> Path:
    """A file as the trainer writes it, with alpha 8 and rank 4, of random weights."""
    generator = torch.Generator().manual_seed(3)
    lora = TrainableLora(layers, 4, 8.0, 0.0, generator)
    weights = {name: torch.randn(value.shape, generator=generator) for name, value in lora.parameters().items()}
    save_tensors(path, lora_state(lora.layers(weights)), {"model_type": "motion_director"})
    lora.detach()
    return path


@pytest.mark.parametrize("dialect", DIALECTS)
def test_what_is_written_reads_as_the_same_bits(tmp_path: Path, unet: UNetMotionModel, dialect: str) -> None:
    layers = made(motion_layers(unet), 4)
    for again in (dialect, ANIMATEDIFF, DIFFUSERS):
        layers_read = load_lora(str(saved(tmp_path / "lora.safetensors", layers, again)), "l", FileKind.MOTION_LORA)
        assert layers_read.keys() == layers.keys()
        for name, layer in layers_read.items():
            assert torch.equal(layer.up, layers[name].up) and torch.equal(layer.down, layers[name].down)
        layers = layers_read


def peer_names(key: str) -> str:
    """The weight that the original's, AnimateDiff-Evolved's and sd-webui-animatediff's loaders add a key to."""
    assert "temporal" in key
    for mark in ("processor.", "_lora", "down.", "up."):
        key = key.replace(mark, "")
    return key.replace("to_out.", "to_out.0.")


def test_the_originals_loaders_find_every_layer() -> None:
    motion = motion_state(tiny_motion_config())
    weights = {
        path: Linear(*reversed(value.shape), device="meta")
        for key, value in motion.items()
        if (path := key.removesuffix(".weight")).endswith(TARGETS) and value.ndim == 2
    }
    layers = made(weights, 2)
    state = motion_lora_state(layers, ANIMATEDIFF)
    assert len(state) == 2 * len(weights) > 50
    assert {peer_names(key) for key in state} == {f"{path}.weight" for path in weights}
    assert all(value.ndim == 2 for value in state.values())
    site = "mid_block.motion_modules.0.temporal_transformer.transformer_blocks.0"
    for key in ("attention_blocks.1.processor.to_out_lora.down", "ff.net.0.processor.proj_lora.up"):
        assert f"{site}.{key}.weight" in state


def test_half_precision_rounds_and_says_when_it_cannot_hold_a_weight(unet: UNetMotionModel) -> None:
    layers = made(motion_layers(unet), 4)
    state = motion_lora_state(layers, ANIMATEDIFF, torch.float16)
    for name, layer in read_lora(state, FileKind.MOTION_LORA).items():
        assert torch.equal(layer.up, layers[name].up.half())
    name, layer = next(iter(layers.items()))
    layers[name] = LoraLayer(layer.up * 1e6, layer.down)
    with pytest.raises(LoraFormatError, match="finite numbers of at most 65504.*fp32"):
        motion_lora_state(layers, ANIMATEDIFF, torch.float16)
    motion_lora_state(layers, ANIMATEDIFF)


@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize(
    "name",
    [
        "down_blocks_0_motion_modules_0_norm",
        "down_blocks_0_attentions_0_proj_in",
        "motion_modules_0_proj_in",
        "down_blocks_0_motion_modules_0_transformer_blocks_0_attention_blocks_0_to_q_extra",
    ],
)
def test_layers_without_a_name_are_refused(dialect: str, name: str) -> None:
    with pytest.raises(LoraFormatError, match=f"{name}: expected an attention"):
        motion_lora_state({name: LoraLayer(torch.zeros(8, 2), torch.zeros(2, 8))}, dialect)
    with pytest.raises(LoraFormatError, match="found none"):
        motion_lora_state({}, dialect)


@pytest.mark.parametrize("dialect", DIALECTS)
def test_an_alpha_that_would_be_lost_is_refused(unet: UNetMotionModel, dialect: str) -> None:
    with pytest.raises(LoraFormatError, match=r"expected alpha folded into up, found alpha 2\.0, rank 4"):
        motion_lora_state(made(motion_layers(unet), 4, alpha=2.0), dialect)


def test_layers_of_the_image_model_are_left_out_of_a_merge(caplog: pytest.LogCaptureFixture) -> None:
    layer = LoraLayer(torch.ones(8, 2), torch.ones(2, 8))
    name = "mid_block_motion_modules_0_transformer_blocks_0_attention_blocks_0_to_q"
    mixed = {name: layer, "mid_block_attentions_0_transformer_blocks_0_attn1_to_q": layer}
    with caplog.at_level(logging.WARNING):
        assert set(merge_motion_loras([MotionLora("mixed", mixed, 1.0)]).layers) == {name}
    assert "mixed also holds 1 layers for the image model" in caplog.text
    other = {name: LoraLayer(torch.ones(16, 2), torch.ones(2, 8))}
    with pytest.raises(LoraFormatError, match=r"1 x mixed \+ 2 x wide: .*another model family"):
        merge_motion_loras([MotionLora("mixed", mixed, 1.0), MotionLora("wide", other, 2.0)])


def test_diffusers_and_the_host_read_every_layer_of_a_trained_spatial_lora(
    tmp_path: Path, unet: UNetMotionModel
) -> None:
    targets = MotionDirectorConfig(name="looks", steps=1).spatial_targets
    spatial = {n: m for n, m in unet.named_modules() if ".attentions." in n and n.endswith(targets)}
    path = trained(tmp_path / "spatial.safetensors", spatial)
    read = load_lora(str(path), "spatial", FileKind.SPATIAL_LORA)
    assert {layer.up.ndim for layer in read.values()} == {2, 4}
    found = loaded_by_diffusers(unet, path)
    assert set(found) == set(read) and len(read) == len(spatial) > 30
    for name, layer in read.items():
        torch.testing.assert_close(found[name].flatten(1), layer.up.flatten(1) @ layer.down.flatten(1))

    model = load_unet(unet_state(unet_config("sd15", **TINY)))
    layers = {name: layer for name, layer in host.spatial_layers(model).items() if name.endswith(targets)}
    path = trained(tmp_path / "spatial.safetensors", layers)
    patches = comfy.lora.load_lora(load_file(path), comfy.lora.model_lora_keys_unet(model.model, {}))
    assert len(patches) == len(layers) > 30
