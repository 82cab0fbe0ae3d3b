"""A workflow as the front end saves it -> the prompt it queues, with the server's own node definitions."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from .provision import ROOT

_WIDGETS = ("INT", "FLOAT", "STRING", "BOOLEAN", "COMBO")
_NOT_RUN = ("Note", "MarkdownNote")


def load_workflow(name: str) -> dict[str, Any]:
    return json.loads((Path(ROOT) / "workflows" / f"{name}.json").read_text())


def to_prompt(workflow: dict[str, Any], definitions: dict[str, Any], **overrides: dict[str, Any]) -> dict[str, Any]:
    """definitions: /object_info. overrides: node type -> input values to set on every node of that type."""
    sources = {link[0]: [str(link[1]), link[2]] for link in workflow["links"]}
    prompt = {}
    for node in workflow["nodes"]:
        kind = node["type"]
        if kind in _NOT_RUN:
            continue
        inputs = _widget_values(node, definitions[kind])
        inputs |= {slot["name"]: sources[slot["link"]] for slot in node["inputs"] if slot.get("link") is not None}
        title = node.get("title") or definitions[kind]["display_name"]
        prompt[str(node["id"])] = {
            "class_type": kind, "inputs": inputs | overrides.get(kind, {}), "_meta": {"title": title},
        }  # fmt: skip
    return prompt


def _widget_values(node: dict[str, Any], definition: dict[str, Any]) -> dict[str, Any]:
    values = iter(node.get("widgets_values", []))
    found = {}
    declared = definition["input"].get("required", {}) | definition["input"].get("optional", {})
    for name, (kind, *options) in declared.items():
        settings = options[0] if options else {}
        widget = isinstance(kind, list) or kind in _WIDGETS or kind.startswith("COMFY_DYNAMICCOMBO")
        if not widget or settings.get("forceInput"):
            continue
        try:
            found[name] = next(values)
        except StopIteration:
            break  # saved by an older front end: the host has defaults for the rest
        if settings.get("control_after_generate"):
            next(values, None)
    return found
