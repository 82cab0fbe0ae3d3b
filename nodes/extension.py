"""The list of nodes that the host registers."""

from __future__ import annotations

from comfy_api.latest import ComfyExtension, io

from . import (
    anchors,
    clips,
    context,
    curves,
    dataset,
    folders,
    footage,
    from_evolved,
    lists,
    loaders,
    loras,
    motion,
    motion_director,
    motion_director_settings,
    noise,
    pia,
    plan_route,
    prompts,
    replacements,
    save_animation,
    sparsectrl,
    strength,
    training,
)


class DiffDirectorExtension(ComfyExtension):
    async def on_load(self) -> None:
        folders.register()
        plan_route.register()
        await replacements.register()

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        return [
            loaders.LoadMotionModel,
            motion.ApplyMotionModel,
            loaders.MotionLoraNode,
            loras.MergeMotionLora,
            loras.SaveMotionLora,
            motion.DomainAdapter,
            context.ContextWindows,
            dataset.VideoDataset,
            training.TrainMotionModule,
            motion_director.TrainMotionDirector,
            motion_director_settings.MotionDirectorSettings,
            strength.MotionStrengthNode,
            prompts.PromptTravel,
            curves.CurveNode,
            curves.CurveFromList,
            noise.FreeInitNode,
            noise.ClipNoiseNode,
            noise.FewSteps,
            footage.LoadFootage,
            anchors.AnchorFrames,
            clips.LoopClip,
            save_animation.SaveAnimation,
            clips.ClipGrid,
            lists.ListFromText,
            sparsectrl.LoadSparseCtrl,
            sparsectrl.ApplySparseCtrl,
            sparsectrl.ScribblePreprocessor,
            pia.PIA,
            from_evolved.EvolvedLoader,
            from_evolved.EvolvedApply,
            from_evolved.EvolvedSampling,
            from_evolved.EvolvedContextOptions,
            from_evolved.EvolvedMultival,
        ]
