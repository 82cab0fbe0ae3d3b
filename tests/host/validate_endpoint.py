"""A custom node for comfy-test's sake: it asks the server at /validate whether a prompt would be taken, and queues nothing.

Where comfy-test makes a host of its own, it adds such a node; to a running server whoever runs it does.
"""

import execution
from aiohttp import web
from server import PromptServer

NODE_CLASS_MAPPINGS = {}  # without it, the host takes this file for a broken one


@PromptServer.instance.routes.post("/validate")
async def validate(request: web.Request) -> web.Response:
    prompt = (await request.json())["prompt"]
    valid, error, _, node_errors = await execution.validate_prompt("validate", prompt, None)
    return web.json_response({"error": error, "node_errors": node_errors}, status=200 if valid else 400)
