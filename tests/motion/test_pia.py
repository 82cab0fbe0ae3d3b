"""PIA: what it adds to the UNet against diffusers' UNetMotionModel, through the host's own sampling; its files; what is refused."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import comfy.context_windows
import comfy.model_management
import comfy.sd
import pytest
import torch
from diffusers import AutoencoderKL, MotionAdapter, PIAPipeline, UNetMotionModel
from diffusers.pipelines.deprecated.pia.pipeline_pia import prepare_mask_coef_by_statistics
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import Conv2d

from diffdirector.motion.context import HANDLER, apply_context_windows, apply_views
from diffdirector.motion.curves import Curve
from diffdirector.motion.formats import MotionFormatError, Version, read_motion_model
from diffdirector.motion.module import load_motion_model, motion_model_from_state
from diffdirector.motion.pia import apply_picture
from diffdirector.motion.picture import Picture
from diffdirector.motion.schedules import AUTO, schedule_for
from diffdirector.motion.similarity import MOTIONS, TABLES, similarities
from diffdirector.motion.splice import FIRST_CONVOLUTION, KEY, NORM_ACROSS_FRAMES, apply_motion_model
from diffdirector.motion.windows import Windows, plan
from diffdirector.tests.host.checkpoints import checkpoint_state, tiny_motion_config
from diffdirector.tests.host.evaluate import TOKENS, evaluate, load, randn, relative_error
from diffdirector.tests.host.oracle import diffusers_motion_key
from diffdirector.tests.host.pia import convolution_of_diffusers, pia_oracle, pia_state
from diffdirector.tests.host.weights import TINY, load_unet, motion_state, unet_config, unet_state
from diffdirector.tests.motion.test_context import FRAMES, NOISE, sample

CONFIG = unet_config("sd15", **TINY)
ONCE = torch.tensor([3.0, 0.0])
SIDE = NOISE.shape[-1]
PIXELS = torch.rand(1, 3, 8 * SIDE, 8 * SIDE, generator=torch.Generator().manual_seed(8))
CONV_IN = "input_blocks.0.0.weight"
# diffusers numbers them in this order, too
ORDER = [f"{kind}{strength} motion" for kind in ("", "loop, ", "style transfer, ") for strength in ("small", "moderate", "large")]  # fmt: skip


@pytest.fixture(scope="module")
def unet() -> dict[str, Tensor]:
    return unet_state(CONFIG)


@pytest.fixture(scope="module")
def model(unet):
    return load_unet(unet)


@pytest.fixture(scope="module")
def handle():
    return motion_model_from_state(pia_state(), "tiny pia")


@pytest.fixture(scope="module")
def vae():
    state = {key[18:]: value for key, value in checkpoint_state().items() if key.startswith("first_stage_model.")}
    return comfy.sd.VAE(sd=state)


@pytest.fixture(scope="module")
def latent(vae) -> Tensor:
    return 0.18215 * vae.encode(PIXELS.movedim(1, -1))


def animated(model: Any, handle: Any, vae: Any, **settings: Any) -> Any:
    return apply_picture(apply_motion_model(model, handle), Picture(PIXELS, vae, **settings))


@pytest.fixture
def calls(model) -> Iterator[list[dict[str, Any]]]:
    """What the UNet was given and what it made of it, in every evaluation."""
    found: list[dict[str, Any]] = []

    def note(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], out: Tensor) -> None:
        window = kwargs["transformer_options"].get("context_window")
        shown = None if window is None else list(window.index_list)
        found.append({"x": args[0], "t": args[1], "context": kwargs["context"], "frames": shown, "out": out})

    hook = model.model.diffusion_model.register_forward_hook(note, with_kwargs=True)
    yield found
    hook.remove()


def expected(unet: dict[str, Tensor], call: dict[str, Any], given: list[float], latent: Tensor, length: int) -> Tensor:
    """What the oracle makes of a call of clips of this length; given: the similarity of each frame."""
    x = call["x"]
    similarity = torch.tensor(given).view(-1, 1, 1, 1).expand(-1, 1, *x.shape[2:]).repeat(len(x) // len(given), 1, 1, 1)
    seen = torch.cat([x, similarity, latent.expand(len(x), -1, -1, -1)], 1)
    video = seen.view(-1, length, *seen.shape[1:]).transpose(1, 2)
    oracle = pia_oracle(CONFIG, unet, pia_state(), length)
    return oracle(video, call["t"][0], call["context"]).sample.transpose(1, 2).flatten(0, 1)


class TestAgreesWithDiffusers:
    """On evaluations of a real sampling, both conditionings in one batch."""

    @pytest.mark.slow
    def test_one_evaluation(self, model, handle, vae, unet, latent, calls) -> None:
        sample(animated(model, handle, vae, motion="moderate motion"), NOISE, ONCE)
        (call,) = calls
        assert len(call["x"]) == 2 * FRAMES
        given = prepare_mask_coef_by_statistics(FRAMES, 0, 1)
        found = expected(unet, call, given, latent, FRAMES)
        assert relative_error(call["out"], found) < 1e-5
        # the check can fail: another motion, another picture, no picture
        for other in ((prepare_mask_coef_by_statistics(FRAMES, 0, 2), latent), (given, latent.flip(-1)), ([0.0] * FRAMES, 0 * latent)):  # fmt: skip
            assert relative_error(expected(unet, call, *other, FRAMES), found) > 1e-4

    def test_without_a_picture_it_is_zeros_and_said(self, model, handle, unet, latent, calls) -> None:
        said: list[str] = []
        sample(apply_motion_model(model, handle, warn=said.append), NOISE, ONCE)
        found = expected(unet, calls[0], [0.0] * FRAMES, 0 * latent, FRAMES)
        assert relative_error(calls[0]["out"], found) < 1e-5
        assert said == ["tiny pia has no picture, so the prompt alone decides. PIA (Image to Animation) gives it one."]

    @pytest.mark.slow
    @pytest.mark.parametrize("at_once", [1, 2])
    def test_each_window_sees_its_frames(self, model, handle, vae, unet, latent, calls, at_once: int) -> None:
        windows = Windows(4, 1)
        shown = animated(model, handle, vae, motion="loop, large motion", frame=3)
        sample(apply_context_windows(shown, windows, at_once=at_once), NOISE, ONCE)
        every = similarities("loop, large motion", FRAMES, 3)
        assert sorted(frame for call in calls for frame in call["frames"]) == sorted(sum(plan(windows, FRAMES).windows, ()))  # fmt: skip
        for call in calls:
            given = [every[frame] for frame in call["frames"]]
            assert relative_error(call["out"], expected(unet, call, given, latent, 4)) < 1e-5

    @pytest.mark.slow
    @pytest.mark.parametrize("fixed", [False, True])
    def test_the_hosts_own_windows(self, model, handle, vae, unet, latent, calls, fixed: bool) -> None:
        """With its causal_window_fix a frame comes before the window's."""
        shown = animated(model, handle, vae, motion="small motion")
        handler = comfy.context_windows.IndexListContextHandler(
            comfy.context_windows.get_matching_context_schedule("standard_static"),
            comfy.context_windows.get_matching_fuse_method("flat"),
            context_length=8, context_overlap=3,
        )  # fmt: skip
        handler.causal_window_fix = fixed
        shown.model_options[HANDLER] = handler
        sample(shown, NOISE, ONCE)
        every = prepare_mask_coef_by_statistics(FRAMES, 0, 0)
        assert len(calls) > 1 and calls[1]["frames"][0] > 0
        for call in calls:
            frames = call["frames"]
            if len(call["x"]) == 2 * len(frames) + 2:
                frames = [frames[0] - 1, *frames]
            given = [every[frame] for frame in frames]
            assert relative_error(call["out"], expected(unet, call, given, latent, len(frames))) < 1e-5

    @pytest.mark.slow
    def test_a_lora_of_the_convolution_is_the_checkpoints(self, model, handle, vae, unet, latent, calls) -> None:
        change = 0.1 * randn(*unet[CONV_IN].shape, seed=4)
        patched = animated(model, handle, vae).clone()
        patched.add_patches({f"diffusion_model.{CONV_IN}": ("diff", (change,))}, 0.7)
        sample(patched, NOISE, ONCE)
        given, merged = prepare_mask_coef_by_statistics(FRAMES, 0, 0), unet | {CONV_IN: unet[CONV_IN] + 0.7 * change}
        assert relative_error(calls[0]["out"], expected(merged, calls[0], given, latent, FRAMES)) < 1e-5
        assert relative_error(calls[0]["out"], expected(unet, calls[0], given, latent, FRAMES)) > 1e-3

    def test_a_curve_takes_the_place_of_the_table(self, model, handle, vae, unet, latent, calls) -> None:
        sample(animated(model, handle, vae, over_frames=Curve(values=(0.9, 0.3, 0.5))), NOISE, ONCE)
        found = expected(unet, calls[0], [0.9, 0.3, *[0.5] * (FRAMES - 2)], latent, FRAMES)
        assert relative_error(calls[0]["out"], found) < 1e-5

    def test_the_convolution_is_the_checkpoints_and_pias_share(self, unet) -> None:
        own, pia = Conv2d(4, 320, 3, padding=1), pia_state()
        own.load_state_dict({"weight": unet[CONV_IN], "bias": unet[CONV_IN.replace("weight", "bias")]})
        found = convolution_of_diffusers(own, pia)
        assert torch.equal(found.weight, torch.cat([own.weight, pia["conv_in.weight"][:, 4:]], 1))
        assert torch.equal(found.bias, own.bias)

    def test_views_see_the_whole_picture(self, model, handle, vae, latent, calls) -> None:
        shown = animated(model, handle, vae)
        sample(apply_views(shown, Windows(8, 3)), NOISE, ONCE)
        sample(apply_views(apply_motion_model(model, handle), Windows(8, 3)), NOISE, ONCE)
        assert len(calls[0]["x"]) == 2 * FRAMES
        assert relative_error(calls[0]["out"], calls[1]["out"]) > 1e-3


class TestSimilarity:
    @pytest.mark.parametrize("frame", [0, 5, 15])
    @pytest.mark.parametrize("number", range(9))
    def test_of_every_motion_over_16_frames_is_diffusers(self, number: int, frame: int) -> None:
        assert ORDER == MOTIONS
        assert similarities(ORDER[number], 16, frame) == prepare_mask_coef_by_statistics(16, frame, number)

    @pytest.mark.parametrize("frames", [1, 8, 24, 40])
    @pytest.mark.parametrize("number", [0, 1, 2, 6, 7, 8])
    def test_of_clips_of_another_length_keeps_the_last_number(self, number: int, frames: int) -> None:
        found = similarities(ORDER[number], frames)
        assert found == prepare_mask_coef_by_statistics(frames, 0, number)[:frames]
        assert similarities(ORDER[number], frames, -1) == found[::-1]

    @pytest.mark.parametrize("frames", [1, 2, 7, 8, 15, 17, 40])
    @pytest.mark.parametrize("motion", ORDER[3:6])
    def test_every_loop_closes(self, motion: str, frames: int) -> None:
        found, table = similarities(motion, frames), list(TABLES[motion])
        half = min(8, frames // 2)
        assert len(found) == frames and found[0] == found[-1] == 1
        assert found[:half] == table[:half] and found[frames - half :] == table[16 - half :]
        assert set(found[half : frames - half]) <= {table[half]}

    def test_mask_and_latent_as_the_pipeline_prepares_them(self) -> None:
        """Of diffusers' own pipeline: one similarity for every position of a frame, and in every frame the picture's scaled latent."""
        vae = AutoencoderKL(block_out_channels=(32,), latent_channels=4)
        parts = dict.fromkeys(("text_encoder", "tokenizer", "scheduler", "motion_adapter", "feature_extractor", "image_encoder"))  # fmt: skip
        small = UNetMotionModel(
            in_channels=9, block_out_channels=(32,), down_block_types=("DownBlockMotion",), up_block_types=("UpBlockMotion",),
            layers_per_block=1, cross_attention_dim=32, num_attention_heads=4,
        )  # fmt: skip
        pipeline = PIAPipeline(vae=vae, unet=small, **parts)
        pipeline._guidance_scale = 1.0
        for number, motion in enumerate(MOTIONS):
            mask, images = pipeline.prepare_masked_condition(
                PIXELS, 1, 4, 16, *PIXELS.shape[2:], torch.float32, "cpu", torch.Generator().manual_seed(1), number
            )
            found = torch.tensor(similarities(motion, 16)).view(1, 1, 16, 1, 1)
            assert torch.equal(mask, found.expand_as(mask))
            encoded = vae.encode(2 * PIXELS - 1).latent_dist.sample(torch.Generator().manual_seed(1))
            assert torch.equal(images, 0.18215 * encoded.unsqueeze(2).expand_as(images))


class TestHost:
    def test_the_checkpoint_is_the_same_before_during_and_after(self, model, handle, vae, unet) -> None:
        seen, own = [], model.model.diffusion_model

        def look(h: Tensor, options: dict[str, Any]) -> Tensor:
            seen.append({key: value.clone() for key, value in own.state_dict().items()})
            return h

        plain = sample(model, NOISE, ONCE)
        shown = animated(model, handle, vae)
        shown.set_model_input_block_patch(look)
        sample(shown, NOISE, ONCE)
        assert seen
        for state in (*seen, own.state_dict()):
            assert list(state) == list(unet) and all(torch.equal(state[key], unet[key]) for key in unet)
        assert torch.equal(sample(model, NOISE, ONCE), plain)

    def test_its_convolution_is_loaded_and_counted_with_the_motion_model(self, model, handle, vae) -> None:
        shown = animated(model, handle, vae)
        load(shown)
        (patcher,) = shown.get_additional_models()
        assert patcher.model is handle.patcher.model and "conv_in.weight" in patcher.model.state_dict()
        entry = next(e for e in comfy.model_management.current_loaded_models if e.model.model is patcher.model)
        assert entry.model_loaded_memory() == comfy.model_management.module_size(patcher.model)

    @pytest.mark.parametrize("kept", [0, 0.3])
    def test_partly_offloaded_weights_give_the_same(self, model, handle, vae, kept: float) -> None:
        shown = apply_motion_model(model, handle)
        picture = Picture(PIXELS, vae)
        picture.fit(SIDE, SIDE, model.model.process_latent_in)
        shown = apply_picture(shown, picture)
        x, text = NOISE[:8], randn(1, TOKENS, 768, seed=1)
        found = evaluate(shown, x, text)
        comfy.model_management.unload_all_models()
        patchers = [shown, *shown.get_additional_models()]
        for patcher in patchers:
            patcher.load(patcher.load_device, lowvram_model_memory=int(kept * patcher.model_size()) + 1)
        try:
            assert relative_error(evaluate(shown, x, text, load_first=False), found) < 1e-6
        finally:
            for patcher in patchers:
                patcher.detach()

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float8_e4m3fn])
    def test_other_precisions(self, unet, vae, dtype: torch.dtype) -> None:
        rounded = {key: value.to(dtype).float() for key, value in pia_state().items()}
        exact = sample(animated(load_unet(unet), motion_model_from_state(rounded, "x"), vae), NOISE, ONCE)
        stored = {key: value if key.endswith(".pe") else value.to(dtype) for key, value in pia_state().items()}
        half = torch.bfloat16 if dtype.itemsize == 1 else dtype
        found = sample(animated(load_unet(unet, half), motion_model_from_state(stored, "x", dtype), vae), NOISE, ONCE)
        assert relative_error(found, exact) < 0.05

    @pytest.mark.slow
    def test_the_picture_works_while_the_motion_model_does(self, model, handle, vae) -> None:
        def shown(picture: bool, **range_of_steps: float) -> Tensor:
            result = apply_motion_model(model, handle, **range_of_steps)
            return sample(apply_picture(result, Picture(PIXELS, vae)) if picture else result, NOISE)

        none = shown(False, strength=0.0)
        assert torch.equal(shown(True, end_percent=0.1), none) and torch.equal(shown(True, strength=0.0), none)
        assert relative_error(shown(True, end_percent=0.8), shown(False, end_percent=0.8)) > 1e-3

    def test_pictures_of_any_size_are_scaled_and_cut(self, model, handle, vae) -> None:
        large = PIXELS.repeat_interleave(2, 2).repeat_interleave(2, 3)
        wide = torch.nn.functional.pad(large, (6, 6), value=0.5)
        halved = torch.nn.functional.interpolate(large, size=PIXELS.shape[2:], mode="bilinear", antialias=True)
        found, exact = (
            sample(apply_picture(apply_motion_model(model, handle), Picture(pixels, vae)), NOISE, ONCE) for pixels in (wide, halved)
        )  # fmt: skip
        assert relative_error(found, exact) < 1e-5

    @pytest.mark.slow
    def test_the_last_picture_of_the_last_pia_counts(self, model, handle, vae) -> None:
        other = motion_model_from_state(motion_state(tiny_motion_config()), "tiny v2")
        once = apply_motion_model(animated(model, handle, vae), other)
        again = apply_picture(apply_picture(once, Picture(PIXELS.flip(-1), vae)), Picture(PIXELS, vae))
        assert torch.equal(sample(again, NOISE, ONCE), sample(once, NOISE, ONCE))
        before = sample(animated(model, handle, vae), NOISE, ONCE)
        moved = apply_picture(animated(model, handle, vae), Picture(PIXELS.flip(-1), vae))
        assert relative_error(sample(moved, NOISE, ONCE), before) > 1e-3
        assert torch.equal(sample(animated(model, handle, vae), NOISE, ONCE), before)

    @pytest.mark.slow
    def test_each_of_two_pias_has_its_picture(self, model, vae) -> None:
        """What both add to the first convolution is the sum of what each adds."""
        silent = {key: 0 * value if ".proj_out." in key else value for key, value in pia_state().items()}
        still = motion_model_from_state(silent, "still pia")
        pictures = [Picture(PIXELS, vae), Picture(PIXELS.flip(-1), vae, "large motion")]
        both = apply_picture(apply_motion_model(model, still), pictures[0])
        both = apply_picture(apply_motion_model(both, still), pictures[1])
        assert [motion.picture for motion in both.get_attachment(KEY).motions] == pictures
        shares = []
        for shown in (model, *(apply_picture(apply_motion_model(model, still), picture) for picture in pictures), both):
            patched = shown.clone()
            patched.set_model_input_block_patch(
                lambda h, options: (options["block"] == FIRST_CONVOLUTION and shares.append(h)) or h
            )
            sample(patched, NOISE, ONCE)
        plain, first, second, found = shares
        assert relative_error(found, first + second - plain) < 1e-5

    def test_a_clip_of_another_size_sees_the_picture_at_its_own(self, model, handle, vae) -> None:
        shown, larger = animated(model, handle, vae), randn(8, 4, 6, 4)
        sample(shown, NOISE, ONCE)
        assert torch.equal(sample(shown, larger, ONCE), sample(animated(model, handle, vae), larger, ONCE))

    def test_another_packs_handler_for_the_convolution_still_runs(self, model, handle, vae) -> None:
        def doubled(layer: nn.Module, x: Tensor, *rest: Any) -> Tensor:
            return layer(2 * x)

        patched = model.clone()
        patched.set_model_forward_timestep_embed_patch((nn.Conv2d, doubled))
        before = sample(animated(patched, handle, vae), NOISE, ONCE)
        after = animated(model, handle, vae)
        after.set_model_forward_timestep_embed_patch((nn.Conv2d, doubled))
        assert torch.equal(sample(after, NOISE, ONCE), before)
        assert relative_error(sample(animated(model, handle, vae), NOISE, ONCE), before) > 1e-3


def in_diffusers_naming(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {diffusers_motion_key(key): value for key, value in state.items()}


def whole_unet(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """As PIA's training saves it: with the checkpoint's layers."""
    return state | {
        "down_blocks.0.resnets.0.conv1.weight": torch.zeros(320, 320, 3, 3),
        "conv_out.bias": torch.zeros(4),
    }


DIALECTS = {
    "original": dict,
    "module.": lambda state: {f"module.{key}": value for key, value in state.items()},
    "training": lambda state: {"epoch": 1, "state_dict": {f"module.{key}": value for key, value in state.items()}},
    "diffusers": in_diffusers_naming,
    "whole UNet": whole_unet,
    "whole UNet, diffusers": lambda state: whole_unet(in_diffusers_naming(state)),
}


class TestFiles:
    @pytest.mark.parametrize("suffix", [".ckpt", ".safetensors"])
    @pytest.mark.parametrize("dialect", DIALECTS)
    def test_every_dialect(self, tmp_path: Path, dialect: str, suffix: str) -> None:
        state, path = pia_state(), tmp_path / f"x{suffix}"
        file = DIALECTS[dialect](state)
        if suffix == ".ckpt":
            torch.save(file, path)
        else:
            save_file({key: value.contiguous().clone() for key, value in file.get("state_dict", file).items()}, path)
        found = load_motion_model(str(path))
        assert found.config.version is Version.PIA and found.config.takes_picture and found.config.max_frames == 32
        held, wanted = found.patcher.model.state_dict(), state | {"conv_in.weight": state["conv_in.weight"][:, 4:]}
        assert held.keys() == wanted.keys() - {"conv_in.bias"}
        assert all(torch.equal(value, wanted[key]) for key, value in held.items())

    def test_an_adapter_from_diffusers_own_writer(self, tmp_path: Path) -> None:
        adapter = MotionAdapter((320, 320), motion_layers_per_block=1, conv_in_channels=9, use_motion_mid_block=False)
        adapter.load_state_dict(in_diffusers_naming(pia_state()))
        adapter.save_pretrained(tmp_path)
        found = load_motion_model(str(tmp_path / "diffusion_pytorch_model.safetensors"))
        assert torch.equal(found.patcher.model.conv_in.weight, pia_state()["conv_in.weight"][:, 4:])
        assert found.config == tiny_motion_config(Version.PIA)

    def test_schedule_and_norms_are_the_originals(self, model, handle) -> None:
        """Betas in a line from 0.00085 to 0.012; group norms across the frames."""
        schedule = schedule_for(AUTO, handle.config)
        assert schedule is not None and (schedule.host_names, schedule.linear_end) == (("sqrt_linear",), 0.012)
        assert apply_motion_model(model, handle).get_attachment(KEY).motions[0].group_norm == NORM_ACROSS_FRAMES

    def test_a_convolution_of_another_shape_is_named(self) -> None:
        for shape in ((64, 9, 3, 3), (320, 9, 1, 1)):
            with pytest.raises(MotionFormatError, match=r"conv_in.weight: expected shape \[320, 9, 3, 3\], found"):
                read_motion_model(pia_state() | {"conv_in.weight": torch.zeros(shape)})


class TestRefusals:
    def test_a_model_without_pia(self, model, vae) -> None:
        with pytest.raises(ValueError, match=r"PIA motion model, found one without any motion model. Put Apply Motion"):
            apply_picture(model, Picture(PIXELS, vae))
        plain = apply_motion_model(model, motion_model_from_state(motion_state(tiny_motion_config()), "tiny v2"))
        with pytest.raises(ValueError, match=r"PIA motion model, found tiny v2 \(AnimateDiff v2\). Put Apply Motion"):
            apply_picture(plain, Picture(PIXELS, vae))

    @pytest.mark.parametrize(
        ("settings", "message"),
        [
            ({"frame": 14}, "frame: expected one of the clip's 14, 0 to 13, found 14"),
            ({"frame": -15}, "frame: expected one of the clip's 14, 0 to 13, found -15"),
        ],
    )
    def test_before_anything_is_loaded(self, model, handle, vae, settings: dict[str, Any], message: str) -> None:
        shown = animated(model, handle, vae, **settings)
        comfy.model_management.unload_all_models()
        with pytest.raises(ValueError, match=message):
            sample(shown, NOISE, ONCE)
        assert not comfy.model_management.current_loaded_models

    def test_settings_that_no_clip_can_have(self, vae) -> None:
        with pytest.raises(ValueError, match="image: expected one picture, found 2"):
            Picture(PIXELS.expand(2, -1, -1, -1), vae)
        with pytest.raises(ValueError, match="vae: expected the checkpoint's, found none"):
            Picture(PIXELS, None)
        with pytest.raises(ValueError, match="motion: expected small motion or .*found huge"):
            Picture(PIXELS, vae, "huge")

    def test_a_vae_of_another_kind(self, model, handle, vae) -> None:
        import comfy.taesd.taesd

        with torch.device("meta"):
            skeleton = comfy.taesd.taesd.TAESD(latent_channels=16)
        state = {key: torch.zeros(value.shape) for key, value in skeleton.state_dict().items()}
        shown = apply_picture(apply_motion_model(model, handle), Picture(PIXELS, comfy.sd.VAE(sd=state)))
        with pytest.raises(
            ValueError, match=r"vae: expected one that makes \[4, 4, 4\] of a picture.*found \[16, 4, 4\]"
        ):
            sample(shown, NOISE, ONCE)

    def test_parts_of_a_clip(self, model, handle, vae) -> None:
        """As samplers of tiles ask for them."""
        shown = animated(model, handle, vae)
        sample(shown, NOISE, ONCE)
        with pytest.raises(
            ValueError, match="as a whole, at the size of the clip; found latents of 2x4, a part of them"
        ):
            evaluate(shown, NOISE[..., :2], randn(1, TOKENS, 768))
