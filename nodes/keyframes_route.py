"""Texts of keyframes over HTTP, for web/timeline.js and web/curve.js: where in a text its entries are, or what is wrong with it."""

from __future__ import annotations

import asyncio
from typing import Any

from aiohttp import web
from server import PromptServer

from ..motion.curves import LINEAR
from ..motion.keyframe_entries import Shown, shown_curve, shown_prompts

PATH = "/diffdirector/keyframes"
MOST = 10000  # frames, as in the nodes


def register() -> None:
    server = getattr(PromptServer, "instance", None)
    if server is not None:
        server.routes.post(PATH)(answer)


async def answer(request: web.Request) -> web.Response:
    """What `read` gives. A text that is wrong is nothing out of the ordinary while it is written: its error is the answer."""
    try:
        return web.json_response(await asyncio.to_thread(read, await request.json()))
    except ValueError as error:
        return web.json_response({"error": str(error)})


def read(question: Any) -> dict[str, Any]:
    """question: text, frames, of: "prompts" or "numbers", and for numbers interpolation. Places in the text count characters from 0.

    Raises ValueError, with line and column for what is wrong in the text.
    """
    if not isinstance(question, dict):
        raise ValueError(f"Expected text and frames, found a {type(question).__name__}.")
    text, frames = question.get("text"), question.get("frames")
    if not isinstance(text, str):
        raise ValueError(f"text: expected a text, found {text!r:.20}.")
    if not (isinstance(frames, int) and 1 <= frames <= MOST):
        raise ValueError(f"frames: expected a whole number from 1 to {MOST}, found {frames!r:.20}.")
    text = text.replace("\r\n", "\n")
    if question.get("of") == "prompts":
        return {"frames": frames, "entries": [_written(one) for one in shown_prompts(text, frames)]}
    curve = shown_curve(text, frames, str(question.get("interpolation", LINEAR)))
    entries = [_written(one) for one in curve.entries]
    return {"frames": curve.frames, "percent": curve.percent, "entries": entries, "line": curve.line}


def _written(shown: Shown) -> dict[str, Any]:
    entry = shown.entry
    return {
        "value": shown.value,
        "start": shown.start,
        "end": shown.end,
        "ends": shown.ends and [end._asdict() for end in shown.ends],
        "place": entry.place,
        "namePlace": entry.name_place,
        "valuePlace": entry.value_place,
        "comma": entry.comma,
        "until": entry.until,
    }
