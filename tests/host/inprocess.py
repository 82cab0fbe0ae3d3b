"""ComfyUI inside this process: its modules, its loaders, its executor; no HTTP."""

from __future__ import annotations

import asyncio
import os
import sys
import uuid
from pathlib import Path
from typing import Any

from .provision import provision


def device_arguments() -> list[str]:
    """The host does not find out by itself that there is no GPU."""
    import torch

    return [] if torch.cuda.is_available() or torch.backends.mps.is_available() else ["--cpu"]


def boot(arguments: list[str], base: Path | None = None) -> None:
    """Make the host's modules importable, as `python main.py <arguments>` would set them up.

    base: where its models/, input/ and output/ are; its own folder otherwise.
    """
    sys.path.insert(0, str(provision().comfyui))
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    if base is not None:
        arguments = [*arguments, "--base-directory", str(base)]
    own_arguments, sys.argv = sys.argv, ["main.py", *arguments]
    try:
        import comfy.options

        comfy.options.enable_args_parsing()
        import comfy.cli_args
    finally:
        sys.argv = own_arguments


class Executor:
    """The host's PromptExecutor with the core nodes and the pack at `pack`, loaded as the host loads custom nodes."""

    def __init__(self, pack: Path) -> None:
        import execution
        import server

        import nodes

        loop = asyncio.new_event_loop()
        asyncio.set_event_loop(loop)
        self.server = server.PromptServer(loop)
        loop.run_until_complete(nodes.init_extra_nodes(init_custom_nodes=False, init_api_nodes=False))
        assert loop.run_until_complete(nodes.load_custom_node(str(pack)))
        cache_arguments = {"lru": 0, "ram": 0, "ram_inactive": 0}
        self._executor = execution.PromptExecutor(self.server, execution.CacheType.CLASSIC, cache_arguments)

    def run(self, prompt: dict[str, Any]) -> dict[str, Any]:
        """Run a prompt (API format): node id -> its UI outputs. Raises RuntimeError with a node's error message."""
        outputs = [node for node, entry in prompt.items() if _is_output(entry["class_type"])]
        self._executor.execute(prompt, uuid.uuid4().hex, {}, outputs)
        for event, data in self._executor.status_messages:
            if event == "execution_error":
                raise RuntimeError(data["exception_message"].strip())
        return self._executor.history_result["outputs"]


def _is_output(class_type: str) -> bool:
    import nodes

    return bool(getattr(nodes.NODE_CLASS_MAPPINGS[class_type], "OUTPUT_NODE", False))
