"""The real server, in a process of its own, and a client that speaks to it as the front end does."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import time
import urllib.error
import urllib.parse
import urllib.request
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import websocket

from .provision import ROOT, Host

PACK_NAME = "DiffDirector"
Progress = Callable[[str, dict[str, Any]], None]


class PromptFailed(RuntimeError):
    """The host refused the prompt, or a node raised; the message is the host's."""


class Server:
    """ComfyUI serving from a base folder of its own, in which this checkout is the only custom node.

    with Server(host, base) as server: server.run(prompt)
    """

    def __init__(self, host: Host, base: Path, *arguments: str) -> None:
        self.host, self.base, self.arguments = host, base, arguments
        self.port = _free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.log = base / "server.log"

    def __enter__(self) -> Server:
        packs = self.base / "custom_nodes"
        packs.mkdir(parents=True, exist_ok=True)
        link = packs / PACK_NAME
        link.unlink(missing_ok=True)  # of an earlier run, perhaps from another clone
        link.symlink_to(ROOT, target_is_directory=True)
        command = [
            str(self.host.python), "main.py", "--base-directory", str(self.base), "--port", str(self.port), "--listen", "127.0.0.1",
            "--disable-api-nodes", "--database-url", f"sqlite:///{self.base / 'comfyui.db'}", *(self.arguments or ("--cpu",)),
        ]  # fmt: skip
        self._log_file = open(self.log, "w")
        environment = os.environ | {"HF_HUB_OFFLINE": "1"}
        self.process = subprocess.Popen(
            command, cwd=self.host.comfyui, stdout=self._log_file, stderr=subprocess.STDOUT, env=environment
        )
        deadline = time.monotonic() + 180
        while not self._answers():
            if self.process.poll() is not None or time.monotonic() > deadline:
                self.__exit__()
                raise RuntimeError(f"ComfyUI did not start:\n{self.log.read_text()[-3000:]}")
            time.sleep(0.2)
        return self

    def __exit__(self, *_: object) -> None:
        self.process.terminate()
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()
        self._log_file.close()

    def get(self, path: str) -> Any:
        with urllib.request.urlopen(f"{self.url}{path}", timeout=60) as response:
            return json.load(response)

    def run(self, prompt: dict[str, Any], on_progress: Progress | None = None, timeout: float = 600) -> dict[str, Any]:
        """Queue a prompt (API format) and wait; returns node id -> its outputs. on_progress gets every event."""
        client = uuid.uuid4().hex
        connection = websocket.create_connection(f"ws://127.0.0.1:{self.port}/ws?clientId={client}", timeout=timeout)
        try:
            prompt_id = self.queue(prompt, client)
            while True:
                message = connection.recv()
                if isinstance(message, bytes):
                    continue  # previews
                event = json.loads(message)
                kind, data = event["type"], event.get("data", {})
                if data.get("prompt_id", prompt_id) != prompt_id:
                    continue
                if on_progress:
                    on_progress(kind, data)
                if kind == "execution_error":
                    raise PromptFailed(data["exception_message"].strip())
                if kind in ("execution_success", "execution_interrupted"):
                    break
        finally:
            connection.close()
        return self._history(prompt_id)["outputs"]

    def queue(self, prompt: dict[str, Any], client: str = "") -> str:
        """Queue a prompt and do not wait; returns its id. Raises PromptFailed where the host refuses it."""
        try:
            return json.loads(self._post("/prompt", {"prompt": prompt, "client_id": client}))["prompt_id"]
        except urllib.error.HTTPError as error:
            raise PromptFailed(error.read().decode()) from None

    def interrupt(self) -> None:
        """What the front end's Cancel does."""
        self._post("/interrupt", {})

    def file(self, output: dict[str, str]) -> bytes:
        """The bytes of a saved file, as an entry of a node's outputs names it."""
        query = urllib.parse.urlencode({key: output[key] for key in ("filename", "subfolder", "type")})
        with urllib.request.urlopen(f"{self.url}/view?{query}", timeout=60) as response:
            return response.read()

    def _history(self, prompt_id: str) -> dict[str, Any]:
        for _ in range(50):  # written just after the success event
            history = self.get(f"/history/{prompt_id}")
            if prompt_id in history:
                return history[prompt_id]
            time.sleep(0.1)
        raise RuntimeError(f"no history for prompt {prompt_id}")

    def _post(self, path: str, body: dict[str, Any]) -> bytes:
        headers = {"Content-Type": "application/json"}
        request = urllib.request.Request(f"{self.url}{path}", json.dumps(body).encode(), headers)
        with urllib.request.urlopen(request, timeout=60) as response:
            return response.read()

    def _answers(self) -> bool:
        try:
            self.get("/system_stats")
        except (OSError, ValueError):
            return False
        return True


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
