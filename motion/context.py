"""Context windows on the host: its own handler, with our plans, and with controls that see the frames of their window."""

from __future__ import annotations

import copy
from typing import Any

import comfy.context_windows
import comfy.patcher_extension
from comfy.context_windows import ContextFuseMethod, ContextSchedule, IndexListCallbacks, IndexListContextHandler
from comfy.model_patcher import ModelPatcher
from torch import Tensor

from .moment import FRAMES_OF_WINDOW, VIEWS, WINDOWS_AT_ONCE
from .windows import Windows, plan, together

KEY = "diffdirector"
HANDLER = "context_handler"  # where the host looks for one in model_options


class ContextWindows(IndexListContextHandler):
    """The host's handler along settings.

    Against the host's: plans in which every frame is covered at every step, without its causal_window_fix (a frame more
    than the motion model may take); a looped clip that fits into one window is turned around in it, so that it closes;
    ControlNets see the hints of the window's frames, not always those of the first; windows that share no frame may go
    through the model together, as one window of the host with the frames of all.
    """

    def __init__(self, settings: Windows, freenoise: bool = False, at_once: int = 1) -> None:
        super().__init__(
            ContextSchedule(KEY, self._windows),
            ContextFuseMethod(KEY, self._weights),
            context_length=settings.length,
            context_overlap=settings.overlap,
            context_stride=settings.stride,
            closed_loop=settings.closed_loop,
            freenoise=freenoise,
        )
        self.settings, self.at_once = settings, at_once
        self.causal_window_fix = False
        self._weights_of: dict[tuple[int, ...], tuple[float, ...]] = {}
        self._fitting = at_once
        self.callbacks = {
            "callbacks": {
                IndexListCallbacks.EVALUATE_CONTEXT_WINDOWS: {KEY: [self._enter_window]},
            }
        }
        self._controls: dict[int, Any] = {}

    def should_use_context(self, model: Any, conds: Any, x_in: Tensor, timestep: Tensor, model_options: Any) -> bool:
        return self.settings.needed(x_in.shape[0])

    def get_resized_cond(self, cond_in: Any, x_in: Tensor, window: Any, device: Any = None) -> Any:
        resized = super().get_resized_cond(cond_in, x_in, window, device)
        for cond in resized or []:
            if cond.get("control") is not None:
                cond["control"] = self._control_of(cond["control"], window.index_list)
        return resized

    def _control_of(self, control: Any, frames: list[int]) -> Any:
        """One for all conditionings of a window, for the host runs those together that share their control."""
        if id(control) not in self._controls:
            self._controls[id(control)] = control_of_frames(control, frames)
        return self._controls[id(control)]

    def get_context_windows(self, model: Any, x_in: Tensor, model_options: Any) -> Any:
        self._fitting = self._that_fit(model, x_in)
        return super().get_context_windows(model, x_in, model_options)

    def _that_fit(self, model: Any, x: Tensor) -> int:
        """How many windows at once the host's estimate has room for."""
        free = model.current_patcher.get_free_memory(x.device) if self.at_once > 1 else 0
        for count in range(self.at_once, 1, -1):
            if model.memory_required([count * self.settings.length, *x.shape[1:]]) * 1.5 < free:  # its own margin
                return count
        return 1

    def _windows(self, frames: int, handler: Any, model_options: Any) -> list[list[int]]:
        planned = plan(self.settings, frames, self._step)
        weights = dict(zip(planned.windows, planned.weights, strict=True))
        groups = together(planned.windows, self._fitting)
        self._weights_of = {sum(group, ()): sum((weights[window] for window in group), ()) for group in groups}
        return [list(frames) for frames in self._weights_of]

    def _weights(self, length: int, idxs: list[int], **_: Any) -> tuple[float, ...]:
        return self._weights_of[tuple(idxs)]

    def _enter_window(self, handler: Any, model: Any, x_in: Tensor, conds: Any, timestep: Tensor, options: Any,
                      number: int, window: Any, *_: Any) -> None:  # fmt: skip
        self._controls.clear()
        length = min(self.settings.length, x_in.shape[0])
        options["transformer_options"] |= {
            FRAMES_OF_WINDOW: {"sub_idxs": window.index_list, "full_length": x_in.shape[0], "context_length": length},
            WINDOWS_AT_ONCE: len(window.index_list) // length,
        }

    def execute(
        self, calc_cond_batch: Any, model: Any, conds: Any, x_in: Tensor, timestep: Tensor, model_options: Any
    ) -> Any:
        try:
            return super().execute(calc_cond_batch, model, conds, x_in, timestep, model_options)
        finally:
            self._controls.clear()
            for key in (FRAMES_OF_WINDOW, WINDOWS_AT_ONCE, "context_window"):
                model_options["transformer_options"].pop(key, None)


def apply_context_windows(
    model: ModelPatcher, settings: Windows, *, freenoise: bool = False, at_once: int = 1
) -> ModelPatcher:
    """A clone of model that denoises clips window by window, at the memory of one window; with any sampler.

    freenoise: later windows start from the first one's noise, in another order (FreeNoise, arXiv:2310.15169). at_once:
    so many windows are computed together where memory allows it.
    """
    result = model.clone()
    options: dict[str, Any] = result.model_options
    options[HANDLER] = ContextWindows(settings, freenoise, at_once)
    wrappers = comfy.patcher_extension.WrappersMP
    for kind, key in (
        (wrappers.PREPARE_SAMPLING, "ContextWindows_prepare_sampling"),
        (wrappers.SAMPLER_SAMPLE, "ContextWindows_sampler_sample"),
    ):
        result.remove_wrappers_with_key(kind, key)  # of windows that were applied before
    comfy.context_windows.create_prepare_sampling_wrapper(result)
    if freenoise:
        comfy.context_windows.create_sampler_sample_wrapper(result)
    return result


def apply_views(model: ModelPatcher, settings: Windows) -> ModelPatcher:
    """A clone of model whose motion models see clips through windows; the image model sees each clip once, as a whole.

    The windows' effects are averaged inside the network ("view options" of AnimateDiff-Evolved).
    """
    result = model.clone()
    result.model_options["transformer_options"][VIEWS] = settings
    return result


def control_of_frames(control: Any, frames: list[int]) -> Any:
    """A control (ControlNet, T2I-Adapter; with those before it) that has the hints of these frames alone.

    Hints are dealt out as the host does over a whole batch: one for all frames, or again from the start where there are
    fewer of them.
    """
    result = copy.copy(control)  # not control.copy(): that one forgets at which steps it works
    if control.previous_controlnet is not None:
        result.previous_controlnet = control_of_frames(control.previous_controlnet, frames)
    hints = control.cond_hint_original
    if hints is not None and hints.shape[0] > 1:
        result.cond_hint_original = hints[[frame % hints.shape[0] for frame in frames]]
        result.cond_hint = None
        result.control_input = None
    result.extra_concat_orig = [
        extra[[frame % extra.shape[0] for frame in frames]] if extra.shape[0] > 1 else extra
        for extra in control.extra_concat_orig
    ]
    return result
