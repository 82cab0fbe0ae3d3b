"""FreeInit, Clip Noise and Few-Step Settings in graphs, with every sampler node, run by the host's own executor."""

from __future__ import annotations

from typing import Any

import comfy.samplers
import pytest
import torch
from comfy.patcher_extension import WrappersMP
from diffusers import EulerDiscreteScheduler, LCMScheduler

from diffdirector.motion.few_steps import PRESETS
from diffdirector.tests.host.checkpoints import tiny_motion_config
from diffdirector.tests.host.prompts import animation, node
from diffdirector.tests.host.weights import TINY, load_unet, motion_state, unet_config, unet_state

FRAMES = 8


@pytest.fixture
def sampled(monkeypatch: pytest.MonkeyPatch) -> list[torch.Tensor]:
    """The latents that VAE Decode is given, one batch after the other."""
    import nodes

    given: list[torch.Tensor] = []
    decode = nodes.VAEDecode.decode

    def remembered(self, vae, samples):
        given.append(samples["samples"])
        return decode(self, vae, samples)

    monkeypatch.setattr(nodes.VAEDecode, "decode", remembered)
    return given


def with_node(kind: str, inputs: dict[str, Any], **changes: Any) -> dict[str, Any]:
    """An animation with a node between the motion model and KSampler; changes of KSampler's inputs."""
    prompt = animation(FRAMES)
    prompt["noise"] = node(kind, model=["apply", 0], **inputs)
    prompt["sample"]["inputs"] |= {"model": ["noise", 0]} | changes
    return prompt


def advanced(prompt: dict[str, Any], **changes: Any) -> dict[str, Any]:
    """The same by KSamplerAdvanced."""
    inputs = {key: value for key, value in prompt["sample"]["inputs"].items() if key not in ("seed", "denoise")}
    inputs |= {
        "add_noise": "enable",
        "noise_seed": 1,
        "start_at_step": 0,
        "end_at_step": 10000,
        "return_with_leftover_noise": "disable",
    }
    return prompt | {"sample": node("KSamplerAdvanced", **(inputs | changes))}


def custom(prompt: dict[str, Any], noise: str = "RandomNoise") -> dict[str, Any]:
    """The same by SamplerCustomAdvanced."""
    inputs = prompt["sample"]["inputs"]
    return prompt | {
        "random": node(noise, **({"noise_seed": inputs["seed"]} if noise == "RandomNoise" else {})),
        "guider": node("CFGGuider", model=["noise", 0], positive=["positive", 0], negative=["negative", 0], cfg=inputs["cfg"]),
        "sampler": node("KSamplerSelect", sampler_name="euler"),
        "sigmas": node("BasicScheduler", model=["noise", 0], scheduler="normal", steps=2, denoise=1.0),
        "sample": node(
            "SamplerCustomAdvanced", noise=["random", 0], guider=["guider", 0], sampler=["sampler", 0], sigmas=["sigmas", 0],
            latent_image=["latent", 0],
        ),
    }  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "inputs"),
    [
        ("DiffDirectorFreeInit", {"iterations": 2, "filter": "gaussian"}),
        ("DiffDirectorClipNoise", {"kind": "seed travel", "to_seed": 4}),
        ("DiffDirectorClipNoise", {"kind": "default", "seeds": "3-6, 9"}),
    ],
)
def test_with_every_sampler_node(executor, sampled, kind: str, inputs: dict[str, Any]) -> None:
    prompt = with_node(kind, inputs)
    for how in (animation(FRAMES), prompt, advanced(prompt), custom(prompt)):
        executor.run(how)
    without, *found = sampled
    assert not torch.allclose(found[0], without, atol=0.1)
    assert torch.equal(found[1], found[0]) and torch.equal(found[2], found[0])


@pytest.mark.slow
def test_once_and_by_default_nothing_changes(executor, sampled) -> None:
    for how in (
        animation(FRAMES),
        with_node("DiffDirectorFreeInit", {"iterations": 1}),
        with_node("DiffDirectorClipNoise", {"kind": "default"}),
    ):
        executor.run(how)
    assert torch.equal(sampled[1], sampled[0]) and torch.equal(sampled[2], sampled[0])


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["DiffDirectorFreeInit", "DiffDirectorClipNoise"])
def test_samplers_that_add_no_noise(executor, sampled, kind: str) -> None:
    inputs = {"iterations": 2} if kind == "DiffDirectorFreeInit" else {"kind": "constant", "seeds": "3"}
    prompt, plain = with_node(kind, inputs), with_node("DiffDirectorFreeInit", {"iterations": 1})
    for how in (
        advanced(plain, add_noise="disable"),
        advanced(prompt, add_noise="disable"),
        custom(prompt, "DisableNoise"),
    ):
        executor.run(how)
    assert torch.equal(sampled[1], sampled[0]) and torch.equal(sampled[2], sampled[0])


@pytest.mark.slow
def test_leftover_noise_is_refused_and_what_it_is_good_for_still_works(executor, sampled) -> None:
    """Two samplers, one after the other: FreeInit on the last one's model has nothing to do."""
    prompt = with_node("DiffDirectorFreeInit", {"iterations": 2}, steps=4)
    half = {"end_at_step": 2, "return_with_leftover_noise": "enable"}
    with pytest.raises(RuntimeError, match="FreeInit: expected a sampling that ends with clean latents"):
        executor.run(advanced(prompt, **half))
    executor.run(advanced(prompt, start_at_step=2))
    executor.run(advanced(prompt, end_at_step=2))
    assert sampled[0].isfinite().all() and sampled[1].isfinite().all()


@pytest.mark.parametrize(
    ("kind", "inputs", "message"),
    [
        ("DiffDirectorClipNoise", {"kind": "default", "seeds": "one"}, "seeds: expected seeds such as .*found 'one'"),
        ("DiffDirectorClipNoise", {"kind": "FreeNoise", "period": 4, "overlap": 4}, r"overlap: expected less than period \(4\), found 4"),
    ],
)  # fmt: skip
def test_wrong_values_are_named(executor, kind: str, inputs: dict[str, Any], message: str) -> None:
    with pytest.raises(RuntimeError, match=message):
        executor.run(with_node(kind, inputs))


def plugged(prompt: dict[str, Any]) -> dict[str, Any]:
    """KSampler with all that Few-Step Settings has for it."""
    outputs = {
        name: ["noise", index] for index, name in enumerate(("model", "steps", "cfg", "sampler_name", "scheduler"))
    }
    prompt["sample"]["inputs"] |= outputs
    return prompt


@pytest.mark.slow
@pytest.mark.parametrize("preset", ["AnimateLCM, 4 steps", "Lightning, 2 steps"])
def test_few_step_settings_plug_into_every_sampler(executor, sampled, preset: str) -> None:
    prompt = plugged(with_node("DiffDirectorFewSteps", {"preset": preset}))
    by_hand = custom(with_node("DiffDirectorFewSteps", {"preset": preset}))
    by_hand["guider"]["inputs"]["cfg"] = ["noise", 2]
    by_hand["sample"]["inputs"] |= {"sampler": ["noise", 5], "sigmas": ["noise", 6]}
    selected = custom(with_node("DiffDirectorFewSteps", {"preset": preset}))  # through V3 nodes
    selected["guider"]["inputs"]["cfg"] = ["noise", 2]
    selected["sampler"]["inputs"]["sampler_name"] = ["noise", 3]
    selected["sigmas"]["inputs"] |= {"scheduler": ["noise", 4], "steps": ["noise", 1]}
    for how in (prompt, advanced(prompt), by_hand, selected):
        executor.run(how)
    assert len(sampled) == 4 and all(torch.equal(found, sampled[0]) for found in sampled[1:])


@pytest.fixture(scope="module")
def animated():
    from diffdirector.motion.module import motion_model_from_state
    from diffdirector.motion.splice import apply_motion_model

    model = load_unet(unet_state(unet_config("sd15", **TINY)))
    return apply_motion_model(model, motion_model_from_state(motion_state(tiny_motion_config()), "tiny v2"))


def distillation(preset: str) -> Any:
    """diffusers' scheduler as the motion model's authors set it."""
    steps = PRESETS[preset].steps
    if "LCM" in preset:
        scheduler = LCMScheduler(beta_schedule="linear", beta_start=0.00085, beta_end=0.012)
    else:
        scheduler = EulerDiscreteScheduler(
            beta_schedule="linear", beta_start=0.00085, beta_end=0.012, timestep_spacing="trailing"
        )
    scheduler.set_timesteps(steps)
    return scheduler


@pytest.mark.slow
@pytest.mark.parametrize("preset", PRESETS)
def test_presets_sample_the_timesteps_of_the_distillation(animated, preset: str) -> None:
    """The timesteps that reach the UNet, by KSampler and by SamplerCustomAdvanced's inputs."""
    from diffdirector.nodes.noise import FewSteps

    model, steps, cfg, sampler_name, scheduler_name, sampler, sigmas = FewSteps.execute(animated, preset).args
    seen: list[float] = []

    def look(executor: Any, x: torch.Tensor, timesteps: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        seen.append(float(timesteps[0]))
        return executor(x, timesteps, *args, **kwargs)

    model.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, "test", look)
    expected = distillation(preset)
    text = torch.zeros(1, 77, 768)
    noise, nothing = torch.randn(FRAMES, 4, 4, 4), torch.zeros(FRAMES, 4, 4, 4)
    by_name = comfy.samplers.KSampler(
        model, steps, model.load_device, sampler_name, scheduler_name, 1.0, model.model_options
    )
    by_name.sample(noise, [[text, {}]], [[text, {}]], cfg=cfg, latent_image=nothing, seed=1, disable_pbar=True)
    named, seen[:] = list(seen), []
    guider = comfy.samplers.CFGGuider(model)
    guider.set_conds([[text, {}]], [[text, {}]])
    guider.sample(noise, nothing, sampler, sigmas, seed=1, disable_pbar=True)
    assert named == seen and len(seen) == steps
    timesteps = expected.timesteps.tolist()
    assert all(abs(a - b) <= (steps == 3) for a, b in zip(seen, timesteps, strict=True))  # 1000 / 3 is no whole number
    if preset == "Lightning, 4 steps":
        assert seen == [999, 749, 499, 249]
    if preset == "AnimateLCM, 4 steps":
        assert seen == [999, 759, 499, 259]
    sigma = ((1 - expected.alphas_cumprod) / expected.alphas_cumprod) ** 0.5
    torch.testing.assert_close(sigmas[:-1], sigma[[int(t) for t in seen]], rtol=2e-4, atol=1e-5)
    assert sigmas[-1] == 0
