"""The node that trains SparseCtrls: Train SparseCtrl."""

from __future__ import annotations

import logging
from pathlib import Path

from comfy_api.latest import io

from ..motion.scribbles import METHODS
from ..motion.sparsectrl import load_sparse_ctrl
from ..motion.splice import apply_motion_model
from ..trainers import host
from ..trainers.checkpoint import check_writable, load_state
from ..trainers.config import LAYOUTS, PRECISIONS, SPARSE_KINDS, SparseCtrlConfig, make_config
from ..trainers.sparse_ctrl import check_trainable, encoder_for, train_sparse_ctrl
from . import folders, types
from .live import LiveTraining
from .training import encoded, previewed, samples_and_validation
from .types import MotionDatasetSocket, MotionModelSocket

DEFAULTS = SparseCtrlConfig("defaults")


class TrainSparseCtrl(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="DiffDirectorTrainSparseCtrl",
            display_name="Train SparseCtrl",
            category="DiffDirector/Training",
            description="Trains a SparseCtrl, for pictures or scribbles, on videos: it learns to carry shown frames on. Cancel keeps what was learnt.",
            search_aliases=["train sparsectrl", "sparse control training", "train controlnet", "finetune sparsectrl", "image to video training"],
            is_output_node=True,
            inputs=[
                io.Model.Input("model", tooltip="The SD1.5 checkpoint to train beside, with the domain adapter if there is one. It is not changed."),
                io.Clip.Input("clip", tooltip="The checkpoint's text encoder."),
                io.Vae.Input("vae", tooltip="The checkpoint's VAE."),
                MotionModelSocket.Input("motion_model", tooltip="The motion model that it works with. It is not changed."),
                MotionDatasetSocket.Input("dataset", tooltip="From Video Dataset."),
                io.String.Input("name", default="my-sparsectrl", tooltip="Name of the file in models/controlnet."),
                io.Int.Input("steps", default=DEFAULTS.steps, min=1, max=1000000, tooltip="Optimizer steps in total, earlier runs of this name included."),
                io.Combo.Input(
                    "kind", options=list(SPARSE_KINDS), default=DEFAULTS.kind,
                    tooltip="What is shown of a clip: rgb, some of its frames, or scribble, lines drawn after them.",
                ),
                io.ControlNet.Input(
                    "start_from", optional=True,
                    tooltip="The SparseCtrl to fine-tune; one of the other kind gives all but its stem. Without one the checkpoint's own layers are copied.",
                ),
                io.Int.Input(
                    "batch_size", default=DEFAULTS.batch_size, min=1, max=64, optional=True,
                    tooltip="Clips per step. More is steadier and takes more memory.",
                ),
                io.Float.Input(
                    "learning_rate", default=DEFAULTS.learning_rate, min=1e-7, max=1e-1, step=1e-6, optional=True,
                    tooltip="How far each step goes. 0.0001 from nothing, 0.00001 to fine-tune.",
                ),
                io.Float.Input(
                    "ends", default=DEFAULTS.ends, min=0.0, max=1.0, step=0.05, optional=True,
                    tooltip="Share of clips whose first frame, last frame or both are shown; any frames of the others.",
                ),
                io.Int.Input("shown", default=DEFAULTS.shown, min=1, max=32, optional=True, tooltip="Of those others 1 to so many frames are shown."),
                io.Combo.Input(
                    "scribble_method", options=METHODS, default=DEFAULTS.scribble_method, optional=True,
                    tooltip="How scribbles are drawn after the frames, as in Scribble Preprocessor. Not used for rgb.",
                ),
                io.Float.Input(
                    "scribble_threshold", default=DEFAULTS.scribble_threshold, min=0.0, max=1.0, step=0.01, optional=True,
                    tooltip="The contrast that makes a line. Lower finds more of them. Not used for rgb.",
                ),
                io.Combo.Input(
                    "layout", options=list(LAYOUTS), default=DEFAULTS.layout, optional=True,
                    tooltip="original: one file, as v3_sd15_sparsectrl_rgb. diffusers: a folder for its SparseControlNetModel. This pack loads both.",
                ),
                io.Combo.Input(
                    "precision", options=list(PRECISIONS), default=DEFAULTS.precision, optional=True, advanced=True,
                    tooltip="What layers compute in; weights are kept in float32. auto is bfloat16 where the device is good at it.",
                ),
                io.Int.Input(
                    "save_every", default=DEFAULTS.save_every, min=0, max=100000, optional=True, advanced=True,
                    tooltip="Steps between saves; 0: only at the end.",
                ),
                io.Int.Input(
                    "seed", default=0, min=0, max=2**31, control_after_generate=False, optional=True,
                    tooltip="The same seed gives the same training, and a further run goes on from this one.",
                ),
                io.Boolean.Input("resume", default=True, optional=True, tooltip="Go on from an earlier run of the same name."),
                *samples_and_validation(
                    "", "What previews show, as a continuation of a clip's first frame: best what is in the clips. Empty: none, and sample is black.",
                ),
            ],
            outputs=[
                io.ControlNet.Output(display_name="control_net", tooltip="The trained SparseCtrl, for Apply SparseCtrl."),
                io.String.Output(display_name="path", tooltip="Where it was saved."),
                io.Image.Output(display_name="sample", tooltip="What the last preview shows."),
            ],
            hidden=[io.Hidden.unique_id, io.Hidden.extra_pnginfo],
        )  # fmt: skip

    @classmethod
    def execute(
        cls, model, clip, vae, motion_model, dataset, start_from=None, resume=True, sample_every=0, sample_prompt="",
        **settings,
    ) -> io.NodeOutput:  # fmt: skip
        config = make_config(SparseCtrlConfig, settings)
        handle, sources = types.motion_model(motion_model), types.motion_dataset(dataset)
        start = None if start_from is None else types.sparse_ctrl(start_from)
        folder = Path(folders.first_path(folders.CONTROLNETS))
        check_writable(folder)
        apply_motion_model(model, handle)  # what does not fit is said before the clips are encoded
        check_trainable(model, handle, max(source.frames for source in sources), config, start)
        live = LiveTraining(cls.hidden, config.steps)
        clips = encoded(sources, model, vae, clip, live, lambda encoder: encoder_for(config, encoder))
        previews, shown = previewed(sample_prompt, sample_every, config, sources, clips, clip, vae, live)
        host.unload(vae.patcher, clip.patcher)
        state = folder / f"{config.name}.training"
        if resume and state.exists():
            live.earlier(load_state(state)["losses"])
        path = train_sparse_ctrl(
            model, handle, clips, config, folder, start_from=start, resume=resume, on_step=live.step, previews=previews
        )
        logging.info("DiffDirector: saved %s", path)
        return io.NodeOutput(load_sparse_ctrl(str(path), config.name), str(path), shown[-1], ui=live.ui())
