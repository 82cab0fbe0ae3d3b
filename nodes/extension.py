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
    from_advanced,
    from_evolved,
    from_evolved_context,
    from_evolved_noise,
    from_evolved_strength,
    keyframes_route,
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
    sparse_ctrl_training,
    sparsectrl,
    strength,
    train_loras,
    training,
)


class DiffDirectorExtension(ComfyExtension):
    async def on_load(self) -> None:
        folders.register()
        plan_route.register()
        keyframes_route.register()
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
            from_evolved_context.EvolvedContextOptions,
            from_evolved_strength.EvolvedMultival,
            from_evolved_context.EvolvedViewOptions,
            from_evolved_strength.EvolvedKeyframe,
            from_evolved_noise.EvolvedSampleSettings,
            from_evolved_noise.EvolvedIterations,
            from_advanced.AdvancedSparseLoader,
            from_advanced.AdvancedSparseMethod,
            from_advanced.AdvancedSparsePictures,
            from_advanced.AdvancedApply,
            sparse_ctrl_training.TrainSparseCtrl,
            train_loras.TrainDomainAdapter,
            train_loras.TrainMotionLora,
        ]
