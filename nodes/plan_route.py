"""The plan of Context Windows over HTTP, for web/context_windows.js: it shows the plan in the node as its widgets change."""

from __future__ import annotations

import asyncio
import base64
import io
from collections.abc import Mapping

from aiohttp import web
from PIL import Image
from server import PromptServer

from ..motion.plan_picture import caption, drawing, first_plans
from ..motion.windows import Windows

PATH = "/diffdirector/plan"
MOST = 1024  # frames
YES_OR_NO = {"true": True, "false": False}


def register() -> None:
    server = getattr(PromptServer, "instance", None)
    if server is not None:
        server.routes.get(PATH)(answer)


async def answer(request: web.Request) -> web.Response:
    """What drawn_plan gives, as JSON; 400 and what is wrong, in words, for settings that no plan can have."""
    try:
        return web.json_response(await asyncio.to_thread(drawn_plan, request.query))
    except ValueError as error:
        return web.Response(status=400, text=str(error))


def drawn_plan(query: Mapping[str, str]) -> dict[str, str]:
    """The picture (a data URL of a PNG) and its caption. query: the node's widgets by name. Raises ValueError for wrong values."""
    settings = Windows(
        _whole(query, "context_length", 1, MOST),
        _whole(query, "overlap", 0, MOST - 1),
        _whole(query, "stride", 1, 8),
        query.get("schedule", ""),
        query.get("fuse", ""),
        _yes_or_no(query, "closed_loop"),
    )
    plans = first_plans(settings, _whole(query, "plan_frames", 1, MOST))
    png = io.BytesIO()
    pixels = drawing(plans).mul(255).round().byte().numpy()
    Image.fromarray(pixels).save(png, "PNG", compress_level=3)
    return {
        "caption": caption(plans),
        "picture": f"data:image/png;base64,{base64.b64encode(png.getvalue()).decode()}",
    }


def _whole(query: Mapping[str, str], name: str, least: int, most: int) -> int:
    text = query.get(name, "")
    if not (text.isascii() and text.isdigit() and len(text) < 9 and least <= int(text) <= most):
        raise ValueError(f"{name}: expected a whole number from {least} to {most}, found {text[:20] or 'nothing'}.")
    return int(text)


def _yes_or_no(query: Mapping[str, str], name: str) -> bool:
    text = query.get(name, "")
    if text not in YES_OR_NO:
        raise ValueError(f"{name}: expected {' or '.join(YES_OR_NO)}, found {text[:20] or 'nothing'}.")
    return YES_OR_NO[text]
