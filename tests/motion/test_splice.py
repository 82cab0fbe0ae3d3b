"""What the splice promises the host and its user, on a small real SD1.5 UNet."""

from __future__ import annotations

import logging

import comfy.model_management
import comfy.samplers
import comfy.sd
import comfy.supported_models
import pytest
import torch
from comfy.ldm.modules.attention import SpatialTransformer
from diffusers import MotionAdapter
from safetensors.torch import load_file

from diffdirector.lora.patches import MotionLora, with_motion_loras
from diffdirector.motion import attention, module
from diffdirector.motion.formats import Version, expected_shapes
from diffdirector.motion.module import motion_model_from_state
from diffdirector.motion.schedules import USE_EXISTING
from diffdirector.motion.splice import (
    KEY,
    NORM_ACROSS_FRAMES,
    NORM_EVERYWHERE,
    apply_motion_model,
)
from diffdirector.tests.host import loras
from diffdirector.tests.host.checkpoints import tiny_motion_config
from diffdirector.tests.host.evaluate import TOKENS, evaluate, load, randn, relative_error
from diffdirector.tests.host.oracle import diffusers_motion_key, oracle_unet
from diffdirector.tests.host.weights import (
    TINY,
    load_unet,
    motion_config,
    motion_state,
    unet_config,
    unet_state,
)

FRAMES = 8
X, CONTEXT = randn(FRAMES, 4, 8, 8), randn(1, TOKENS, 768, seed=1)


@pytest.fixture(scope="module")
def model():
    return load_unet(unet_state(unet_config("sd15", **TINY)))


@pytest.fixture(scope="module")
def motion():
    return motion_model_from_state(motion_state(tiny_motion_config()), "tiny v2")


@pytest.fixture(scope="module")
def other_motion():
    return motion_model_from_state(motion_state(tiny_motion_config(Version.V3), seed=9), "tiny v3")


@pytest.fixture(scope="module")
def plain(model):
    with torch.inference_mode():
        return evaluate(model, X, CONTEXT)


def camera_lora(seed: int = 3, strength: float = 1.0) -> MotionLora:
    from diffdirector.lora.formats import read_lora
    from diffdirector.motion.identify import FileKind

    state = loras.in_original_naming(loras.motion_lora(motion_state(tiny_motion_config()), rank=4, seed=seed))
    return MotionLora("camera", read_lora(state, FileKind.MOTION_LORA), strength)


class _Recorder:
    """What the host's WrapperExecutor gives a wrapper: the guider, and the call to go on with."""

    def __init__(self, guider: comfy.samplers.CFGGuider) -> None:
        self.class_obj = guider

    def __call__(self, noise: torch.Tensor) -> torch.Tensor:
        return noise


class TestLeavesNoTrace:
    def test_strength_zero_is_the_plain_model_bit_for_bit(self, model, motion, plain) -> None:
        assert torch.equal(evaluate(apply_motion_model(model, motion, strength=0), X, CONTEXT), plain)

    def test_plain_model_is_untouched_after_an_animated_run(self, model, motion, plain) -> None:
        animated = evaluate(apply_motion_model(model, motion), X, CONTEXT)
        assert relative_error(animated, plain) > 0.1
        assert torch.equal(evaluate(model, X, CONTEXT), plain)

    def test_state_dict_is_the_same_before_during_and_after(self, model) -> None:
        unet = model.model.diffusion_model
        before = {key: value.clone() for key, value in unet.state_dict().items()}
        seen = []

        def look(h, transformer_options):
            seen.append({key: value.clone() for key, value in unet.state_dict().items()})
            return h

        animated = apply_motion_model(model, motion_model_from_state(motion_state(tiny_motion_config()), "m"))
        animated.set_model_input_block_patch(look)
        evaluate(animated, X, CONTEXT)
        assert seen
        for state in (*seen, unet.state_dict()):
            assert list(state) == list(before)
            assert all(torch.equal(state[key], before[key]) for key in before)

    @pytest.mark.parametrize("group_norm", [NORM_ACROSS_FRAMES, NORM_EVERYWHERE])
    def test_norms_across_frames_last_for_one_evaluation_even_if_it_fails(
        self, model, motion, plain, group_norm
    ) -> None:
        animated = apply_motion_model(model, motion, group_norm=group_norm)

        def fail(h, transformer_options):
            raise KeyError("a patch of another pack")

        across = evaluate(animated, X, CONTEXT)
        broken = animated.clone()
        broken.set_model_input_block_patch(fail)
        with pytest.raises(KeyError):
            evaluate(broken, X, CONTEXT)
        assert torch.equal(evaluate(model, X, CONTEXT), plain)
        assert torch.equal(evaluate(animated, X, CONTEXT), across)
        assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.model.diffusion_model.modules())

    def test_saved_checkpoint_holds_no_motion_weights(self, model, motion, tmp_path) -> None:
        animated = apply_motion_model(model, motion)
        files = tmp_path / "plain.safetensors", tmp_path / "animated.safetensors"
        for patcher, path in zip((model, animated), files, strict=True):
            comfy.sd.save_checkpoint(str(path), patcher)
        first, second = map(load_file, files)
        assert list(first) == list(second)
        assert all(torch.equal(first[key], second[key]) for key in first)


class TestHost:
    def test_motion_model_is_loaded_and_counted_by_the_host(self, model, motion) -> None:
        animated = apply_motion_model(model, motion)
        load(animated)
        loaded = [
            entry for entry in comfy.model_management.current_loaded_models if entry.model.model is motion.patcher.model
        ]
        assert len(loaded) == 1
        assert loaded[0].model_loaded_memory() == comfy.model_management.module_size(motion.patcher.model) > 10**7
        comfy.model_management.unload_all_models()
        assert motion.patcher.model.model_loaded_weight_memory == 0

    def test_one_motion_model_applied_twice_is_loaded_once(self, model, motion) -> None:
        twice = apply_motion_model(
            apply_motion_model(model, motion, end_percent=0.5), motion, start_percent=0.5
        ).clone()
        comfy.model_management.unload_all_models()
        load(twice)
        modules = [entry.model.model for entry in comfy.model_management.current_loaded_models]
        assert modules.count(motion.patcher.model) == 1

    @pytest.mark.slow
    def test_two_models_of_one_checkpoint_do_not_disturb_each_other(self, model, motion, other_motion) -> None:
        first, second = apply_motion_model(model, motion), apply_motion_model(model, other_motion)
        alone = evaluate(first, X, CONTEXT)
        other = evaluate(second, X, CONTEXT)
        assert relative_error(alone, other) > 0.1
        assert torch.equal(evaluate(first, X, CONTEXT), alone)
        assert torch.equal(evaluate(second, X, CONTEXT), other)

    @pytest.mark.slow
    def test_one_motion_model_with_and_without_a_lora(self, model, motion) -> None:
        bare = apply_motion_model(model, motion)
        moved = apply_motion_model(model, with_motion_loras(motion, [camera_lora()]))
        first = evaluate(bare, X, CONTEXT)
        second = evaluate(moved, X, CONTEXT)
        assert relative_error(first, second) > 1e-3
        assert torch.equal(evaluate(bare, X, CONTEXT), first)
        assert torch.equal(evaluate(moved, X, CONTEXT), second)

    @pytest.mark.slow
    def test_stock_lora_before_or_after_gives_the_same(self, model, motion, plain) -> None:
        config = unet_config("sd15", **TINY)
        lora = loras.in_original_naming(loras.spatial_lora(config, unet_state(config), rank=4, seed=5))
        before = apply_motion_model(comfy.sd.load_lora_for_models(model, None, lora, 0.8, 0)[0], motion)
        after = comfy.sd.load_lora_for_models(apply_motion_model(model, motion), None, lora, 0.8, 0)[0]
        first = evaluate(before, X, CONTEXT)
        assert torch.equal(evaluate(after, X, CONTEXT), first)
        assert relative_error(first, evaluate(apply_motion_model(model, motion), X, CONTEXT)) > 1e-3

    @pytest.mark.parametrize("kept", [0, 0.3])
    @pytest.mark.parametrize("with_lora", [False, True])
    def test_partly_offloaded_weights_give_the_same(self, model, motion, with_lora, kept) -> None:
        """--lowvram and --novram: the host keeps weights back and casts (and patches) them when they are used."""
        handle = with_motion_loras(motion, [camera_lora()]) if with_lora else motion
        animated = apply_motion_model(model, handle)
        expected = evaluate(animated, X, CONTEXT)
        comfy.model_management.unload_all_models()
        for patcher in (animated, *animated.get_additional_models()):
            patcher.load(patcher.load_device, lowvram_model_memory=int(kept * patcher.model_size()) + 1)
            assert patcher.model.model_lowvram
        try:
            assert relative_error(evaluate(animated, X, CONTEXT, load_first=False), expected) < 1e-6
        finally:
            for patcher in (animated, *animated.get_additional_models()):
                patcher.detach()

    @pytest.mark.slow
    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float8_e4m3fn])
    def test_other_precisions_of_the_checkpoint(self, motion, dtype) -> None:
        state = unet_state(unet_config("sd15", **TINY))
        animated = apply_motion_model(load_unet(state, dtype), motion)
        compute = animated.model.manual_cast_dtype or dtype
        found = evaluate(animated, X.to(compute), CONTEXT.to(compute)).float()
        still = evaluate(apply_motion_model(animated, motion, strength=0), X.to(compute), CONTEXT.to(compute))
        rounded = {key: value.to(dtype).float() for key, value in state.items()}
        expected = evaluate(apply_motion_model(load_unet(rounded), motion), X, CONTEXT)
        assert found.isfinite().all()
        assert relative_error(found, expected) < 0.05
        assert still.dtype == compute

    def test_other_packs_handler_for_the_same_layer_still_runs(self, model, motion) -> None:
        def doubled(layer, x, emb, context, options, *rest):
            return 2 * layer(x, context, options)

        expected = None
        for order in ("before", "after"):
            patched = model.clone()
            if order == "before":
                patched.set_model_forward_timestep_embed_patch((SpatialTransformer, doubled))
                patched = apply_motion_model(patched, motion)
            else:
                patched = apply_motion_model(patched, motion)
                patched.set_model_forward_timestep_embed_patch((SpatialTransformer, doubled))
            found = evaluate(patched, X, CONTEXT)
            expected = found if expected is None else expected
            assert torch.equal(found, expected)
        assert relative_error(expected, evaluate(apply_motion_model(model, motion), X, CONTEXT)) > 1e-3


class TestEvaluation:
    @pytest.mark.slow
    def test_conds_in_one_batch_equal_conds_apart(self, model, motion) -> None:
        animated = apply_motion_model(model, motion)
        other_context = randn(1, TOKENS, 768, seed=2)
        apart = [evaluate(animated, X, context) for context in (CONTEXT, other_context)]
        contexts = torch.cat([c.expand(FRAMES, -1, -1) for c in (CONTEXT, other_context)])
        together = evaluate(animated, torch.cat([X, X]), contexts, cond_or_uncond=[0, 1])
        assert relative_error(together, torch.cat(apart)) < 2e-6  # batches of another size round differently

    @pytest.mark.slow
    def test_chunks_equal_the_whole(self, model, motion, monkeypatch) -> None:
        animated = apply_motion_model(model, motion)
        monkeypatch.setattr(module, "positions_per_chunk", lambda *_: 10**9)
        whole = evaluate(animated, X, CONTEXT)
        monkeypatch.setattr(module, "positions_per_chunk", lambda *_: 7)
        assert relative_error(evaluate(animated, X, CONTEXT), whole) < 1e-6
        monkeypatch.setattr(attention, "KERNEL_ROWS", 100)
        monkeypatch.setattr(module, "positions_per_chunk", lambda *_: 10**9)
        assert relative_error(evaluate(animated, X, CONTEXT), whole) < 1e-6

    def test_gradients_flow_and_agree_with_inference(self) -> None:
        config = tiny_motion_config()
        with torch.inference_mode(False):
            handle = motion_model_from_state(motion_state(config), "trained")
            site = handle.patcher.model.at("down_blocks.0.motion_modules.0")
            x = randn(2 * FRAMES, 320, 8, 8).requires_grad_()
            out = site(x, FRAMES)
            out.square().mean().backward()
            assert x.grad is not None
            assert x.grad.isfinite().all()
            assert x.grad.abs().max() > 0
        assert relative_error(site(x.detach(), FRAMES), out.detach()) < 1e-6

    def test_several_models_add_their_effects(self, model, motion, other_motion) -> None:
        site, x = "down_blocks.0.motion_modules.0", randn(FRAMES, 320, 8, 8)
        both = apply_motion_model(apply_motion_model(model, motion, strength=0.5), other_motion, strength=0.25)
        splice = both.get_attachment(KEY)
        options = {"block": ("input", 1), "patches": {"forward_timestep_embed_patch": []}}
        moved = [handle.patcher.model.at(site)(x, FRAMES) - x for handle in (motion, other_motion)]
        load(both)
        assert relative_error(splice._move(x, options), x + 0.5 * moved[0] + 0.25 * moved[1]) < 1e-6

    def test_step_ranges(self, model, motion, plain) -> None:
        sampling = model.get_model_object("model_sampling")
        first_half = apply_motion_model(model, motion, beta_schedule=USE_EXISTING, end_percent=0.5)
        early, late = (torch.tensor([sampling.percent_to_sigma(p)]) for p in (0.25, 0.75))
        always = evaluate(apply_motion_model(model, motion, beta_schedule=USE_EXISTING), X, CONTEXT)
        assert torch.equal(evaluate(first_half, X, CONTEXT, sigmas=early), always)
        assert torch.equal(evaluate(first_half, X, CONTEXT, sigmas=late), plain)

    def test_step_ranges_follow_the_schedule_that_is_sampled(self, model, motion, other_motion) -> None:
        """The later motion model brings its own schedule; the earlier one's range means percent of that one."""
        splices = [
            apply_motion_model(apply_motion_model(model, motion, **halves[0]), other_motion, **halves[1])
            for halves in (
                ({"end_percent": 0.5}, {"beta_schedule": "linear (AnimateDiff-SDXL)"}),
                ({"end_percent": 0.5, "beta_schedule": "linear (AnimateDiff-SDXL)"}, {"beta_schedule": USE_EXISTING}),
            )
        ]
        for sigma in torch.linspace(0.1, 20, 60):
            active = [s.get_attachment(KEY).moment({"sigmas": sigma.view(1)}).active for s in splices]
            assert len(active[0]) == len(active[1])

    def test_attention_override_of_the_host_is_used(self, model, motion) -> None:
        rows = []

        def override(function, q, k, v, *args, **kwargs):
            rows.append(q.shape)
            return function(q, k, v, *args, **kwargs)

        animated = apply_motion_model(model, motion)
        evaluate(animated, X, CONTEXT, optimized_attention_override=override)
        assert (64, FRAMES, 320) in [tuple(shape) for shape in rows]


class TestOtherKindsAgreeWithTheOracle:
    """Kinds that share the architecture, on the small UNet; v1, v2, v3 and SDXL-beta do so at full size."""

    def agrees(self, model, state: dict, motion: dict, across_frames: int = 0) -> None:
        config = unet_config("sd15", **TINY)
        theirs = oracle_unet(config, unet_state(config), motion, across_frames)
        video, context = X.unsqueeze(0).transpose(1, 2), CONTEXT.expand(FRAMES, -1, -1)
        expected = theirs(video, 500, context).sample[0].transpose(0, 1)
        animated = apply_motion_model(model, motion_model_from_state(state, "file"))
        assert relative_error(evaluate(animated, X, CONTEXT), expected) < 1e-5

    def test_animatelcm_without_a_stored_encoding(self, model) -> None:
        motion = motion_state(motion_config(Version.LCM, channels=(320, 320), modules=1))
        self.agrees(model, {key: value for key, value in motion.items() if not key.endswith(".pe")}, motion)

    def test_hotshot_in_its_own_naming(self, model) -> None:
        motion = motion_state(motion_config(Version.HOTSHOT, channels=(320, 320), modules=1))
        renamed = {
            key.replace("motion_modules", "temporal_attentions")
            .replace("temporal_transformer.", "")
            .replace("pos_encoder.pe", "pos_encoder.positional_encoding"): value
            for key, value in motion.items()
        }
        self.agrees(model, renamed, motion, across_frames=FRAMES)

    def test_down_blocks_only(self, model) -> None:
        motion = motion_state(tiny_motion_config())
        down = {key: value for key, value in motion.items() if key.startswith("down_blocks.")}
        silent = {
            key: torch.zeros_like(value) if ".proj_out." in key and key not in down else value
            for key, value in motion.items()
        }
        self.agrees(model, down, silent)


class TestRefusals:
    def test_family_mismatch(self, model) -> None:
        config = motion_config(Version.V3, channels=(32, 64))
        handle = motion_model_from_state(motion_state(config), "narrow")
        with pytest.raises(ValueError, match="does not fit this checkpoint.*32, 64.*320, 320"):
            apply_motion_model(model, handle)

    def test_too_many_frames(self, model, motion) -> None:
        animated = apply_motion_model(model, motion)
        with pytest.raises(ValueError, match="at most 32 frames at a time, the batch has 33.*Context Windows.*stretch"):
            evaluate(animated, randn(33, 4, 8, 8), CONTEXT)

    @pytest.mark.slow
    def test_stretching_the_encoding_takes_longer_clips(self, model, motion) -> None:
        stretched = apply_motion_model(model, motion, stretch_to=40)
        assert evaluate(stretched, randn(40, 4, 8, 8), CONTEXT).isfinite().all()
        short = apply_motion_model(model, motion, stretch_to=16)  # shorter than stored: used as stored
        assert torch.equal(evaluate(short, X, CONTEXT), evaluate(apply_motion_model(model, motion), X, CONTEXT))

    def test_batch_that_is_no_multiple_of_the_conds(self, model, motion) -> None:
        animated = apply_motion_model(model, motion)
        with pytest.raises(ValueError, match="batch of 3 conditionings.*found 8"):
            evaluate(animated, X, CONTEXT, cond_or_uncond=[0, 1, 2])

    @pytest.mark.parametrize(("frames", "error", "warning"), [(40, True, False), (16, False, False), (4, False, True)])
    def test_clip_length_is_judged_before_anything_is_loaded(self, model, motion, frames, error, warning) -> None:
        warnings = []
        animated = apply_motion_model(model, motion, warn=warnings.append)
        comfy.model_management.unload_all_models()
        latent = torch.zeros(frames, 4, 8, 8)
        cond = [[CONTEXT, {}]]
        guider = comfy.samplers.CFGGuider(animated)
        guider.set_conds(cond, cond)
        sigmas = torch.tensor([1.0, 0.0])
        run = lambda: guider.sample(latent, latent, comfy.samplers.sampler_object("euler"), sigmas, disable_pbar=True)  # noqa: E731
        if error:
            with pytest.raises(ValueError, match="at most 32 frames"):
                run()
            assert not comfy.model_management.current_loaded_models
        else:
            assert run().shape == latent.shape
        assert bool(warnings[-1]) is (warning or error)
        if warning:
            assert warnings == ["4 frames: fewer than 8 give noise. Raise batch_size."]

    def test_model_of_another_architecture(self, motion) -> None:
        shape = {"in_channels": 16, "out_channels": 16, "vec_in_dim": 32, "context_in_dim": 32, "hidden_size": 32}
        layers = {"num_heads": 1, "depth": 1, "depth_single_blocks": 1, "axes_dim": [8, 12, 12], "theta": 10000}
        rest = {
            "mlp_ratio": 4.0,
            "qkv_bias": True,
            "guidance_embed": False,
            "patch_size": 2,
            "image_model": "flux",
            "txt_ids_dims": [],
        }
        flux = comfy.supported_models.Flux({**shape, **layers, **rest})
        flux.set_inference_dtype(torch.float32, None)
        patcher = comfy.model_patcher.ModelPatcher(flux.get_model({}), torch.device("cpu"), torch.device("cpu"))
        with pytest.raises(ValueError, match="SD1.5 and SDXL checkpoints; this model is Flux"):
            apply_motion_model(patcher, motion)

    def test_sd2(self, motion) -> None:
        config = unet_config("sd15", **TINY, context_dim=1024, use_linear_in_transformer=True, num_head_channels=64)
        config.pop("num_heads")
        with pytest.raises(ValueError, match="SD1.5 and SDXL checkpoints; this model is SD2"):
            apply_motion_model(load_unet(unet_state(config)), motion)

    def test_context_handlers_of_another_dimension_do_not_count_as_windows(self, model, motion) -> None:
        from comfy.context_windows import ContextSchedules, IndexListContextHandler, get_matching_context_schedule

        warnings: list[str] = []
        animated = apply_motion_model(model, motion, warn=warnings.append)
        schedule = get_matching_context_schedule(ContextSchedules.STATIC_STANDARD)
        animated.model_options["context_handler"] = IndexListContextHandler(schedule, None, context_length=4, dim=2)
        guider = comfy.samplers.CFGGuider(animated)
        guider.model_options = animated.model_options
        animated.get_attachment(KEY).check_clip(_Recorder(guider), torch.zeros(16, 4, 8, 8))
        assert warnings == [""]

    def test_default_warning_goes_to_the_log(self, model, motion, caplog) -> None:
        splice = apply_motion_model(model, motion).get_attachment(KEY)
        with caplog.at_level(logging.WARNING):
            splice.warn("few frames")
        assert "few frames" in caplog.text


def test_full_size_shapes_are_those_of_diffusers_published_adapter() -> None:
    with torch.device("meta"):
        adapter = MotionAdapter()  # its defaults are guoyww/animatediff-motion-adapter-v1-5-2
    found = {
        diffusers_motion_key(key): tuple(shape) for key, shape in expected_shapes(motion_config(Version.V2)).items()
    }
    assert found == {key: tuple(value.shape) for key, value in adapter.state_dict().items()}
