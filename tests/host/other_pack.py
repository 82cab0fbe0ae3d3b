"""A pack that has one of the nodes that we know a replacement for: it is to be left alone."""

from __future__ import annotations

from pathlib import Path

NODE = "ADE_EmptyLatentImageLarge"
SOURCE = """
import torch
class EmptyLatentImageLarge:
    RETURN_TYPES, FUNCTION, CATEGORY = ("LATENT",), "make", "other"
    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"width": ("INT", {}), "height": ("INT", {}), "batch_size": ("INT", {})}}
    def make(self, width, height, batch_size):
        return ({"samples": torch.zeros(batch_size + 3, 4, height // 8, width // 8)},)
NODE_CLASS_MAPPINGS = {"ADE_EmptyLatentImageLarge": EmptyLatentImageLarge}
"""


def install_other_pack(base: Path) -> None:
    """Into the base folder of a host that is not running yet. Its latents are three more than asked for."""
    folder = base / "custom_nodes" / "other"
    folder.mkdir(parents=True)
    (folder / "__init__.py").write_text(SOURCE)
