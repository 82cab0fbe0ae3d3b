"""DiffDirector: AnimateDiff made whole, for ComfyUI."""

WEB_DIRECTORY = "./web"
__all__ = ["WEB_DIRECTORY", "comfy_entrypoint"]


async def comfy_entrypoint():  # the host calls it once, at start
    from .nodes.extension import DiffDirectorExtension

    return DiffDirectorExtension()
