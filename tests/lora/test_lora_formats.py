"""LoRA files of every dialect, from their real producers where they can run; peft's own deltas are the reference."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import comfy.model_management
import comfy.utils
import pytest
import torch
from diffusers import AnimateDiffPipeline, UNetMotionModel
from diffusers.loaders.lora_base import LORA_ADAPTER_METADATA_KEY
from diffusers.utils import convert_state_dict_to_diffusers
from diffusers.utils.state_dict_utils import convert_state_dict_to_kohya
from peft import LoraConfig, get_peft_model, get_peft_model_state_dict
from peft.tuners.lora import LoraLayer as PeftLayer
from safetensors.torch import save_file
from torch import Tensor

from diffdirector.lora.formats import LoraFormatError, LoraLayer, check_shape, layer_name, read_lora
from diffdirector.lora.patches import MotionLora, apply_domain_adapter, load_lora, with_motion_loras
from diffdirector.motion.formats import Version, canonical_key
from diffdirector.motion.identify import FileKind
from diffdirector.motion.module import motion_model_from_state
from diffdirector.tests.host.oracle import diffusers_motion_key
from diffdirector.tests.host.weights import TINY, load_unet, motion_config, motion_state, unet_config, unet_state

State = dict[str, Tensor]
Base = Callable[[str], str]
KINDS = FileKind.MOTION_LORA, FileKind.SPATIAL_LORA
LINEARS = ("to_q", "to_k", "to_v", "to_out.0")
ATTENTION = [
    f"{site}.temporal_transformer.transformer_blocks.0.attention_blocks.{index}.{linear}"
    for site in ("down_blocks.1.motion_modules.0", "mid_block.motion_modules.0", "up_blocks.0.motion_modules.1")
    for index in (0, 1)
    for linear in LINEARS
]
BLOCK = "up_blocks.0.motion_modules.1.temporal_transformer.transformer_blocks.0"
MOTION = [*ATTENTION, f"{BLOCK}.ff.net.0.proj", f"{BLOCK}.ff.net.2"]
ADAPTER = [
    f"mid_block.attentions.0.transformer_blocks.0.attn{index}.{linear}" for index in (1, 2) for linear in LINEARS
]
SPATIAL = [
    *ADAPTER,
    *(f"down_blocks.0.attentions.1.transformer_blocks.0.ff.net.{linear}" for linear in ("0.proj", "2")),
]


def motion_director(path: str) -> str:
    head, leaf = path.rsplit(".", 1)
    return f"{head}.processor.{leaf}_lora"


def original(path: str) -> str:
    return motion_director(path.removesuffix(".0"))


def diffusers(path: str) -> str:
    return "unet." + diffusers_motion_key(path)


def kohya(path: str) -> str:
    return "lora_unet_" + path.replace(".", "_")


PROCESSOR = (".down.weight", ".up.weight")
LAYER = (".lora.down.weight", ".lora.up.weight")
PEFT = (".lora_A.weight", ".lora_B.weight")
NAMED_PEFT = (".lora_A.default.weight", ".lora_B.default.weight")
KOHYA = (".lora_down.weight", ".lora_up.weight")
# dialect: (layers it can hold, key of a layer, what follows for down and for up)
DIALECTS: dict[str, tuple[list[str], Base, tuple[str, str]]] = {
    "original": (ATTENTION, original, PROCESSOR),
    "original, module.": (ATTENTION, lambda path: f"module.{original(path)}", PROCESSOR),
    "MotionDirector": (MOTION, motion_director, PROCESSOR),
    "diffusers processors": (ATTENTION, lambda path: original(diffusers(path)), PROCESSOR),
    "diffusers": (MOTION, diffusers, LAYER),
    "PEFT": (MOTION, lambda path: f"base_model.model.{diffusers_motion_key(path)}", PEFT),
    "PEFT, adapter name": (MOTION, lambda path: f"base_model.model.{path}", NAMED_PEFT),
    "kohya": (MOTION, kohya, KOHYA),
    "kohya, diffusers": (MOTION, lambda path: kohya(diffusers_motion_key(path)), KOHYA),
    "domain adapter": (ADAPTER, original, PROCESSOR),
    "domain adapter, module.": (ADAPTER, lambda path: f"module.{original(path)}", PROCESSOR),
    "spatial, diffusers": (SPATIAL, diffusers, LAYER),
    "spatial, PEFT": (SPATIAL, lambda path: f"base_model.model.{path}", PEFT),
    "spatial, kohya": (SPATIAL, kohya, KOHYA),
}


def made(paths: list[str], rank: int = 4, alpha: float | None = None, size: tuple[int, int] = (48, 32)) -> dict[str, LoraLayer]:  # fmt: skip
    """A random LoRA for each layer."""
    generator = torch.Generator().manual_seed(rank)
    out, width = size
    return {
        path: LoraLayer(torch.randn(out, rank, generator=generator), torch.randn(rank, width, generator=generator), alpha)
        for path in paths
    }  # fmt: skip


def file_of(dialect: str, layers: Mapping[str, LoraLayer]) -> State:
    _, base, (down, up) = DIALECTS[dialect]
    state = {base(path) + down: layer.down for path, layer in layers.items()}
    state |= {base(path) + up: layer.up for path, layer in layers.items()}
    return state | {base(p) + ".alpha": torch.tensor(v.alpha) for p, v in layers.items() if v.alpha is not None}


def name_of(path: str) -> str:
    return path.replace("temporal_transformer.", "").replace(".", "_")


def kind_of(dialect: str) -> FileKind:
    return KINDS["motion_modules" not in DIALECTS[dialect][0][0]]


def delta(layer: LoraLayer) -> Tensor:
    rank = layer.down.shape[0]
    return layer.up.flatten(1) @ layer.down.flatten(1) * (rank if layer.alpha is None else layer.alpha) / rank


def refusal(state: Mapping[str, Any], kind: FileKind = FileKind.MOTION_LORA) -> str:
    with pytest.raises(LoraFormatError) as caught:
        read_lora(state, kind)
    return str(caught.value)


@pytest.mark.parametrize(("rank", "alpha"), [(1, None), (3, 2.0), (64, None)])
@pytest.mark.parametrize("dialect", DIALECTS)
def test_every_dialect_reads_as_the_same_layers(dialect: str, rank: int, alpha: float | None) -> None:
    paths, base, _ = DIALECTS[dialect]
    assert [layer_name(base(path)) for path in paths] == [name_of(path) for path in paths]
    layers = made(paths, rank, alpha)
    found = read_lora(file_of(dialect, layers), kind_of(dialect))
    assert set(found) == {name_of(path) for path in layers}
    for path, layer in layers.items():
        read = found[name_of(path)]
        assert torch.equal(read.up, layer.up) and torch.equal(read.down, layer.down), path
        assert read.rank == rank and read.alpha == alpha


def test_motion_director_adapter_with_convolutions() -> None:
    up, down = torch.randn(32, 4, 1, 1), torch.randn(4, 32, 1, 1)
    root = "unet.down_blocks.0.attentions.0"
    state = {f"{root}.proj_in_lora.up.weight": up, f"{root}.proj_in_lora.down.weight": down}
    linear = f"{root}.transformer_blocks.0.ff.net.0.proj_lora"
    state |= {f"{linear}.up.weight": up[:, :, 0, 0], f"{linear}.down.weight": down[:, :, 0, 0]}
    found = read_lora(state, FileKind.SPATIAL_LORA)
    proj_in, proj = (f"down_blocks_0_attentions_0_{name}" for name in ("proj_in", "transformer_blocks_0_ff_net_0_proj"))
    assert set(found) == {proj_in, proj}
    assert torch.equal(found[proj_in].up, up) and torch.equal(found[proj].up, up[:, :, 0, 0])
    for layer in found.values():
        torch.testing.assert_close(delta(layer), up[:, :, 0, 0] @ down[:, :, 0, 0])


TARGETS = {
    FileKind.MOTION_LORA: r"(down|mid).*motion_modules.*\.(to_[qkv]|to_out\.0|ff\.net\.0\.proj|ff\.net\.2)$",
    FileKind.SPATIAL_LORA: r"(down|mid).*\.attentions\..*\.(to_[qkv]|to_out\.0|ff\.net\.0\.proj|ff\.net\.2)$",
}
CONFIGS: dict[str, dict[str, Any]] = {
    "alpha": {"lora_alpha": 6},
    "rslora": {"lora_alpha": 6, "use_rslora": True},
    "alpha pattern": {"lora_alpha": 6, "alpha_pattern": {".*attn1.to_q": 3}},
    "rank pattern": {"lora_alpha": 6, "rank_pattern": {".*attn1.to_q": 2}},
}
WRITERS: dict[str, Callable[[State], State]] = {
    "peft": dict,
    "diffusers": convert_state_dict_to_diffusers,
    "kohya": lambda state: convert_state_dict_to_kohya({f"unet.{key}": value for key, value in state.items()}),
}


def lora_config(kind: FileKind, **options: Any) -> LoraConfig:
    return LoraConfig(r=4, target_modules=TARGETS[kind], init_lora_weights=False, **options)


def peft_deltas(model: torch.nn.Module) -> State:
    """What peft adds to each weight, by layer name."""
    found = {}
    for name, module in model.named_modules():
        if isinstance(module, PeftLayer):
            canonical = canonical_key(f"{name}.weight") or f"{name}.weight"
            found[name_of(canonical.removesuffix(".weight"))] = module.get_delta_weight("default")
    assert len(found) > 15
    return found


def assert_deltas(found: Mapping[str, LoraLayer], wanted: State) -> None:
    assert set(found) == set(wanted)
    for name, layer in found.items():
        torch.testing.assert_close(delta(layer), wanted[name], msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("writer", WRITERS)
def test_state_dicts_of_peft(unet: UNetMotionModel, kind: FileKind, writer: str) -> None:
    unet.add_adapter(lora_config(kind, lora_alpha=4))
    assert_deltas(read_lora(WRITERS[writer](get_peft_model_state_dict(unet)), kind), peft_deltas(unet))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("config", CONFIGS)
def test_files_of_diffusers_keep_their_scale(
    tmp_path: Path, unet: UNetMotionModel, config: str, kind: FileKind
) -> None:
    settings = lora_config(kind, **CONFIGS[config])
    unet.add_adapter(settings)
    unet.save_lora_adapter(str(tmp_path / "model"))
    layers = get_peft_model_state_dict(unet)
    AnimateDiffPipeline.save_lora_weights(
        str(tmp_path / "pipeline"), layers, unet_lora_adapter_metadata=settings.to_dict()
    )
    paths = list(tmp_path.rglob("*.safetensors"))
    assert len(paths) == 2
    for path in paths:
        assert_deltas(load_lora(str(path), path.name, kind), peft_deltas(unet))


def test_the_alpha_of_the_text_encoder_is_not_taken_for_the_unets() -> None:
    metadata = {LORA_ADAPTER_METADATA_KEY: '{"text_encoder.lora_alpha": 1, "unet.lora_alpha": 6}'}
    found = read_lora(file_of("diffusers", made(MOTION)), FileKind.MOTION_LORA, metadata)
    assert {layer.alpha for layer in found.values()} == {6.0}


def test_a_stored_alpha_goes_before_the_metadata() -> None:
    metadata = {LORA_ADAPTER_METADATA_KEY: '{"lora_alpha": 6}'}
    found = read_lora(file_of("PEFT", made(MOTION, alpha=2.0)), FileKind.MOTION_LORA, metadata)
    assert {layer.alpha for layer in found.values()} == {2.0}


def test_files_of_peft(tmp_path: Path, unet: UNetMotionModel) -> None:
    model = get_peft_model(unet, lora_config(FileKind.MOTION_LORA, lora_alpha=4))
    model.save_pretrained(tmp_path)
    found = load_lora(str(tmp_path / "adapter_model.safetensors"), "adapter", FileKind.MOTION_LORA)
    assert_deltas(found, peft_deltas(model.base_model.model))


@pytest.mark.parametrize("metadata", ["not json", "[]", "null", '{"lora_alpha": "x"}', '{"lora_alpha": null}'])
def test_damaged_metadata_is_refused_or_ignored(metadata: str) -> None:
    layers = made(MOTION)
    try:
        found = read_lora(file_of("PEFT", layers), FileKind.MOTION_LORA, {LORA_ADAPTER_METADATA_KEY: metadata})
    except LoraFormatError:
        return
    assert_deltas(found, {name_of(path): delta(layer) for path, layer in layers.items()})


@pytest.mark.parametrize("suffix", [".safetensors", ".ckpt", ".pt", ".pth", ".bin"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_files_keep_their_values_whatever_their_name(tmp_path: Path, suffix: str, dtype: torch.dtype) -> None:
    layers = made(ATTENTION)
    state = {key: value.to(dtype) for key, value in file_of("original", layers).items()}
    path = tmp_path / f"v3_sd15_adapter{suffix}"
    if suffix == ".safetensors":
        save_file(state, path, {"model_type": "motion_director", "rank": "4"})
    else:
        torch.save({"epoch": 1, "state_dict": {f"module.{key}": value for key, value in state.items()}}, path)
    found = load_lora(str(path), path.name, FileKind.MOTION_LORA)
    assert set(found) == {name_of(key) for key in layers}
    for key, layer in layers.items():
        assert torch.equal(found[name_of(key)].up, layer.up.to(dtype))
        assert torch.equal(found[name_of(key)].down, layer.down.to(dtype))


@pytest.mark.parametrize("dialect", ["original", "PEFT", "kohya"])
@pytest.mark.parametrize("part", ["down", "up"])
def test_half_a_layer_is_refused_by_name(dialect: str, part: str) -> None:
    _, base, suffixes = DIALECTS[dialect]
    state = file_of(dialect, made(ATTENTION))
    del state[base(ATTENTION[0]) + suffixes[part == "up"]]
    assert name_of(ATTENTION[0]) in refusal(state)


def use(state: State) -> None:
    for name, layer in read_lora(state, FileKind.MOTION_LORA).items():
        check_shape(name, layer, torch.Size((48, 32)))


@pytest.mark.parametrize("part", ["down", "up"])
@pytest.mark.parametrize(("shape", "word"), [("ranks differ", "rank"), ("flat", ""), ("other width", "48 x 32")])
def test_a_misshapen_layer_is_named_before_it_is_used(shape: str, word: str, part: str) -> None:
    sizes = {"ranks differ": {"down": (3, 32), "up": (48, 3)}, "flat": {"down": (4,), "up": (48,)}}
    other = {"down": (4, 64), "up": (96, 4)}
    key = ATTENTION[0].replace("to_q", f"processor.to_q_lora.{part}.weight")
    state = file_of("original", made(ATTENTION))
    assert key in state
    use(state)
    with pytest.raises(LoraFormatError) as caught:
        use(state | {key: torch.zeros(sizes.get(shape, other)[part])})
    assert name_of(ATTENTION[0]) in str(caught.value) and word in str(caught.value)


@pytest.mark.parametrize("extra", ["hada_w1_a", "lokr_w1", "lora_magnitude_vector", "dora_scale"])
def test_other_methods_are_not_read_as_a_plain_lora(extra: str) -> None:
    assert extra in refusal(file_of("kohya", made(MOTION)) | {f"{kohya(MOTION[0])}.{extra}": torch.ones(48, 1)})


def zeros(*keys: str) -> State:
    return {key: torch.zeros(1) for key in keys}


MOTION_LORA, SPATIAL_LORA = KINDS
FOREIGN: dict[str, tuple[FileKind, State, str]] = {
    "adapter": (MOTION_LORA, file_of("domain adapter", made(ADAPTER)), "domain adapter|Domain Adapter|models/loras"),
    "kohya LoRA": (MOTION_LORA, file_of("spatial, kohya", made(SPATIAL)), "LoRA for the image model|models/loras"),
    "MotionLoRA": (SPATIAL_LORA, file_of("original", made(ATTENTION)), "MotionLoRA|models/animatediff_motion_lora"),
    "PEFT MotionLoRA": (SPATIAL_LORA, file_of("PEFT", made(MOTION)), "MotionLoRA|models/animatediff_motion_lora"),
    "kohya MotionLoRA": (SPATIAL_LORA, file_of("kohya, diffusers", made(MOTION)), "MotionLoRA"),
    "motion model": (
        MOTION_LORA,
        zeros(f"{BLOCK}.norms.0.weight"),
        "motion model|Load Motion Model|animatediff_models",
    ),
    "SparseCtrl": (MOTION_LORA, zeros(f"{BLOCK}.norms.0.weight", "controlnet_cond_embedding.weight"), "SparseCtrl"),
    "checkpoint": (SPATIAL_LORA, zeros("model.diffusion_model.out.2.bias"), "checkpoint|models/checkpoints"),
    "empty": (MOTION_LORA, {}, "without any tensor|get the file again"),
    "unknown": (SPATIAL_LORA, zeros("weights"), "does not know|right file"),
}


@pytest.mark.parametrize("name", FOREIGN)
def test_other_files_are_named_for_what_they_are(tmp_path: Path, name: str) -> None:
    kind, state, words = FOREIGN[name]
    message = refusal(state, kind)
    assert [word for word in words.split("|") if word not in message] == [], message
    path = tmp_path / "v2_lora_ZoomIn.safetensors"
    save_file(state, path)
    with pytest.raises(LoraFormatError, match="v2_lora_ZoomIn"):
        load_lora(str(path), path.name, kind)


@pytest.mark.parametrize("suffix", [".safetensors", ".ckpt"])
@pytest.mark.parametrize("kept", [0.0, 0.01, 0.5])
def test_damaged_files_are_refused_with_advice(tmp_path: Path, suffix: str, kept: float) -> None:
    path = tmp_path / f"lora{suffix}"
    (save_file if suffix == ".safetensors" else torch.save)(file_of("original", made(ATTENTION)), path)
    content = path.read_bytes()
    path.write_bytes(content[: int(kept * len(content))])
    with pytest.raises(LoraFormatError, match=r"(?s)ZoomIn.*again"):
        load_lora(str(path), "ZoomIn", FileKind.MOTION_LORA)


class Payload:
    """Unpickling it creates a file."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.target,)


@pytest.mark.parametrize("suffix", [".ckpt", ".pt", ".safetensors"])
def test_code_in_a_pickle_is_not_run(tmp_path: Path, suffix: str) -> None:
    path, target = tmp_path / f"lora{suffix}", tmp_path / "executed"
    path.write_bytes(pickle.dumps({"state_dict": {}, "code": Payload(target)}))
    with pytest.raises(LoraFormatError, match="lora"):
        load_lora(str(path), path.name, FileKind.MOTION_LORA)
    assert not target.exists()
    pickle.loads(path.read_bytes())
    assert target.exists(), "the payload is harmless, so this test proves nothing"


def patched(patcher: Any) -> State:
    """The weights as the host loads them."""
    comfy.model_management.load_models_gpu([patcher])
    weights = {key: value.clone() for key, value in patcher.model.state_dict().items()}
    patcher.unpatch_model()
    return weights


def test_a_chain_of_motion_loras_adds_up() -> None:
    state = motion_state(motion_config(Version.V2, (32, 64), 1))
    handle = motion_model_from_state(state, "motion")
    paths = [path for path in ATTENTION if path.startswith(("down_blocks.1", "mid_block"))]
    chain, wanted = [], dict(state)
    for rank, alpha, strength in ((4, None, 1.0), (2, 1.0, -0.7), (8, 16.0, 1.5)):
        layers = made(paths, rank, alpha, (64, 64))
        chain.append(MotionLora("lora", read_lora(file_of("MotionDirector", layers), MOTION_LORA), strength))
        wanted |= {
            f"{path}.weight": wanted[f"{path}.weight"] + strength * delta(layer) for path, layer in layers.items()
        }
    found = patched(with_motion_loras(handle, chain).patcher)
    assert set(found) == set(wanted)
    for key, value in wanted.items():
        torch.testing.assert_close(found[key], value)
    assert [key for key, value in patched(handle.patcher).items() if not torch.equal(value, state[key])] == []


def test_the_domain_adapter_adds_to_the_image_unet_and_comes_off() -> None:
    config = unet_config("sd15", **TINY)
    state = unet_state(config)
    model = load_unet(state)
    names = {
        key.removesuffix(".weight"): name
        for key, name in comfy.utils.unet_to_diffusers(config).items()
        if "_block" in key and ".attn" in key and key.endswith("weight")
    }
    assert len(names) > 10
    layers = {path: made([path], size=state[name].shape)[path] for path, name in names.items()}
    adapter = read_lora(file_of("domain adapter", layers), SPATIAL_LORA)
    found = patched(apply_domain_adapter(model, "adapter", adapter, -0.5))
    for path, name in names.items():
        torch.testing.assert_close(found[f"diffusion_model.{name}"], state[name] - 0.5 * delta(layers[path]))
    assert apply_domain_adapter(model, "adapter", adapter, 0.0) is model
    bare = patched(model)
    assert [name for name in state if not torch.equal(bare[f"diffusion_model.{name}"], state[name])] == []


@pytest.mark.parametrize("pattern", ["([a-z0-9_.]+)+!", "(", ".*" * 30 + "!", "[a"])
def test_a_pattern_that_could_hang_the_host_is_refused(pattern: str) -> None:
    state = {f"{TARGET}.lora_{part}.weight": torch.zeros(4, 4) for part in "AB"}
    metadata = {"lora_adapter_metadata": json.dumps({"lora_alpha": 4, "alpha_pattern": {pattern: 2}})}
    with pytest.raises(LoraFormatError, match="alpha_pattern: expected layer names"):
        read_lora(state, FileKind.MOTION_LORA, metadata)


def test_two_adapters_in_one_file_are_refused() -> None:
    state = {f"{TARGET}.lora_{part}.{name}.weight": torch.zeros(4, 4) for part in "AB" for name in ("one", "two")}
    with pytest.raises(LoraFormatError, match="is in the file twice"):
        read_lora(state, FileKind.MOTION_LORA)


TARGET = "down_blocks.0.motion_modules.0.transformer_blocks.0.attn1.to_q"
