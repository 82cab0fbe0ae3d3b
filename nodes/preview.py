"""What the node of a sampler shows while it samples a clip: the clip moving, where the host previews its first frame alone.

The clips go to the page as the host's own previews do, drawn by the previewer of the host's preview method. Vue nodes play
them as they are; web/preview.js plays them in nodes that are drawn on the canvas.
"""

from __future__ import annotations

import asyncio
import io
import json
import math
import struct
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import latent_preview
import torch.nn.functional as F
from comfy.model_patcher import ModelPatcher
from comfy.patcher_extension import WrappersMP
from comfy_api.feature_flags import supports_feature
from comfy_execution.progress import get_progress_state
from comfy_execution.utils import get_executing_context
from PIL import Image, ImageOps
from protocol import BinaryEventTypes
from server import PromptServer
from torch import Tensor

KEY = "diffdirector_preview"
MOST_FRAMES = 16
SIDE = 256  # px, the longer one
TAESD_SCALE = 8  # px of a picture per latent
FRAME_RATE = 8  # at which the clip is shown
SECONDS_BETWEEN = 1 / 3
LARGEST_SHARE = 0.1  # of the sampling's time that goes into its previews

Draw = Callable[[Tensor], Image.Image]


class MovingPreview:
    """The previews of one sampling: at most three a second, and fewer where drawing them would take too much of its time.

    draw: the picture of one frame's latent, [1, channels, height, width]. send: takes an animated WEBP. clock: seconds
    that only grow.
    """

    def __init__(
        self, draw: Draw, send: Callable[[bytes], None], clock: Callable[[], float] = time.perf_counter
    ) -> None:
        self._draw, self._send, self._clock = draw, send, clock
        self._started, self._due = clock(), -math.inf

    def step(self, clip: Tensor, last: bool) -> None:
        """After each step; clip: what it is denoised to, [frames, channels, height, width]. The last one is always shown."""
        now = self._clock()
        if now < self._due and not last:
            return
        self._send(self._webp(clip, now - self._started))
        cost = self._clock() - now
        self._due = now + max(SECONDS_BETWEEN, cost / LARGEST_SHARE)

    def _webp(self, clip: Tensor, elapsed: float) -> bytes:
        """The clip from the frame on that is due at this moment: the page starts each preview at its beginning."""
        count = min(len(clip), MOST_FRAMES)
        duration = len(clip) / count / FRAME_RATE
        turn = round(elapsed / duration) % count
        chosen = [number * len(clip) // count for number in (*range(turn, count), *range(turn))]
        first, *rest = (ImageOps.contain(self._draw(clip[frame : frame + 1]), (SIDE, SIDE)) for frame in chosen)
        file = io.BytesIO()
        first.save(
            file, "WEBP", save_all=True, append_images=rest, duration=round(1000 * duration), loop=0, quality=75, method=0
        )  # fmt: skip
        return file.getvalue()


def preview_moving(model: ModelPatcher) -> None:
    """Let samplers of this model, a clone that nobody else has yet, show its clips moving."""
    model.remove_wrappers_with_key(WrappersMP.OUTER_SAMPLE, KEY)
    model.add_wrapper_with_key(WrappersMP.OUTER_SAMPLE, KEY, _sample)


def _sample(
    executor: Any, noise: Tensor, latent_image: Tensor, sampler: Any, sigmas: Tensor, denoise_mask: Tensor | None = None,
    callback: Callable[..., Any] | None = None, *rest: Any, **kwargs: Any,
) -> Any:  # fmt: skip
    send, patcher = _to_page(), executor.class_obj.model_patcher
    if callback is not None and send is not None and len(noise) > 1:
        draw = drawer(latent_preview.get_previewer(patcher.load_device, patcher.model.latent_format))
        if draw is not None:
            callback = _with_previews(callback, MovingPreview(draw, send))
    return executor(noise, latent_image, sampler, sigmas, denoise_mask, callback, *rest, **kwargs)


def drawer(previewer: Any) -> Draw | None:
    """How the host's previewer draws a frame; a large one smaller, where it decodes. None: the user wants no previews."""
    if previewer is None:
        return None

    def draw(latent: Tensor) -> Image.Image:
        scale = SIDE / TAESD_SCALE / max(latent.shape[-2:])
        if isinstance(previewer, latent_preview.TAESDPreviewerImpl) and scale < 1:
            latent = F.interpolate(latent, scale_factor=scale, mode="bilinear")
        return previewer.decode_latent_to_preview(latent)

    return draw


def _with_previews(callback: Callable[..., Any], preview: MovingPreview) -> Callable[..., Any]:
    def after_step(step: int, clip: Tensor, x: Tensor, steps: int) -> None:
        with _without_still():
            callback(step, clip, x, steps)
        preview.step(clip, step + 1 == steps)

    return after_step


@contextmanager
def _without_still() -> Iterator[None]:
    """The host tells the page of a step's progress, but does not show the still that belongs to it over the clip."""
    progress, node = get_progress_state(), _executing_node()
    page = progress.handlers.get("webui")
    if page is None or not page.enabled:
        yield
        return
    page.disable()
    try:
        yield
    finally:
        page.enable()
    state = progress.nodes.get(node)
    if state is not None:
        page.update_handler(node, state["value"], state["max"], state, progress.prompt_id)


def _executing_node() -> str:
    context = get_executing_context()
    return "" if context is None else context.node_id


def _to_page() -> Callable[[bytes], None] | None:
    """Sends a preview of the node that is executing to the tab that runs the graph; None where there is none or it is too old."""
    server, node, progress = getattr(PromptServer, "instance", None), _executing_node(), get_progress_state()
    if server is None or server.client_id is None or not node:
        return None
    if not supports_feature(server.sockets_metadata, server.client_id, "supports_preview_metadata"):
        return None
    graph, client = progress.dynprompt, server.client_id
    description = {
        "node_id": node,
        "prompt_id": progress.prompt_id,
        "display_node_id": graph.get_display_node_id(node),
        "parent_node_id": graph.get_parent_node_id(node),
        "real_node_id": graph.get_real_node_id(node),
        "image_type": "image/webp",
    }
    header = json.dumps(description).encode()

    def send(clip: bytes) -> None:
        message = struct.pack(">I", len(header)) + header + clip
        # not through send_sync, which takes previews of this kind as stills only
        sending = server.send_bytes(BinaryEventTypes.PREVIEW_IMAGE_WITH_METADATA, message, client)
        asyncio.run_coroutine_threadsafe(sending, server.loop)

    return send
