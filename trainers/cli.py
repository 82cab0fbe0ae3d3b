"""Training without the graph, as a recipe file says."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from PIL import Image
from tqdm import tqdm

from ..lora.formats import LoraFormatError
from ..lora.patches import apply_domain_adapter, load_lora
from ..motion.formats import MotionFormatError
from ..motion.identify import FileKind
from ..motion.module import load_motion_model
from ..motion.sparsectrl import load_sparse_ctrl
from . import host, processes
from .checkpoint import SaveError
from .config import ConfigError, DomainAdapterConfig, MotionLoraConfig, MotionModuleConfig, SparseCtrlConfig
from .contact_sheet import contact_sheet
from .dataset import DatasetError, Encoder, LatentClips, encode_clips
from .domain_adapter import train_domain_adapter
from .errors import TrainingDiverged, TrainingOutOfMemory
from .loop import StepReport
from .lora_training import LoraFiles
from .motion_director import MotionDirectorFiles, train_motion_director
from .motion_lora import train_motion_lora
from .motion_module import train_motion_module
from .processes import ProcessLost
from .recipe import Recipe, read_recipe
from .sampling import Previews
from .shards import encode_shards
from .sources import Clip
from .sparse_ctrl import check_trainable, encoder_for, train_sparse_ctrl

EXPECTED = (
    ConfigError, DatasetError, LoraFormatError, MotionFormatError, ProcessLost, SaveError, TrainingDiverged, TrainingOutOfMemory,
)  # fmt: skip


def run(config: Path) -> int | str:
    """Train as the recipe file says, in as many processes as were started; a process's exit status: 0, or what was wrong,
    which one of them says."""
    with processes.joined():
        try:
            done = train(read_recipe(config))
        except EXPECTED as error:
            return str(error) if processes.speaks() else 1
        except KeyboardInterrupt:
            return "Stopped. What was learnt is kept; the same command goes on from there." if processes.speaks() else 1
        except Exception:
            if processes.speaks():
                raise
            return 1
        if processes.is_first():
            print(f"{done} is done.")
        return 0


def train(recipe: Recipe) -> Path:
    """Returns the file of the result; <name>.clips.png beside it shows the clips. Interrupting it keeps what was learnt."""
    config = recipe.config
    processes.check_batch(config.batch_size)
    if isinstance(config, MotionModuleConfig) and config.sharded and recipe.sample_prompt:
        raise ConfigError(
            'sharded: expected no samples, which take the whole model in one process, found a prompt in [sample]. Set it to "", or sharded to false.'
        )
    if processes.is_first() and recipe.videos:
        sheet = (contact_sheet(recipe.videos) * 255).round().byte()
        recipe.output.mkdir(parents=True, exist_ok=True)
        Image.fromarray(sheet.numpy()).save(recipe.output / f"{config.name}.clips.png")
    model, clip, vae = host.load_checkpoint(recipe.checkpoint)
    if recipe.domain_adapter is not None:
        name = recipe.domain_adapter.name
        layers = load_lora(str(recipe.domain_adapter), name, FileKind.SPATIAL_LORA)
        model = apply_domain_adapter(model, name, layers, 1.0)
    motion_model = None if recipe.motion_model is None else load_motion_model(str(recipe.motion_model))
    encoder, sparse_ctrl = host.encoder(model, vae, clip), None
    if isinstance(config, SparseCtrlConfig):
        assert motion_model is not None
        sparse_ctrl = None if recipe.sparse_ctrl is None else load_sparse_ctrl(str(recipe.sparse_ctrl))
        check_trainable(model, motion_model, recipe.frames, config, sparse_ctrl)
        encoder = encoder_for(config, encoder)
    clips, previews = _encoded(recipe, encoder), None
    if recipe.sample_prompt and processes.is_first():
        previews = Previews.of(
            recipe.sample_prompt, clip, vae, recipe.videos, every=recipe.sample_every, seed=config.seed,
            frames=1 if isinstance(config, DomainAdapterConfig) else clips.frames, width=clips.width, height=clips.height,
        )  # fmt: skip
    host.unload(vae.patcher, clip.patcher)
    with tqdm(total=config.steps, desc=config.name, unit="step", disable=not processes.is_first()) as bar:

        def on_step(report: StepReport) -> None:
            losses = {name: f"{loss:.4f}" for name, loss in report.losses.items()}
            if report.validation is not None:
                losses["held out"] = f"{report.validation:.4f}"
            bar.set_postfix(losses | {"lr": f"{report.learning_rate:.1e}"}, refresh=False)
            bar.update(report.step - bar.n)

        if isinstance(config, MotionModuleConfig):
            return train_motion_module(
                model, clips, config, recipe.output, start_from=motion_model, resume=recipe.resume, on_step=on_step, previews=previews
            )  # fmt: skip
        files = LoraFiles.of_one(config.name, recipe.output)
        if isinstance(config, DomainAdapterConfig):
            return train_domain_adapter(
                model, clips, config, files, resume=recipe.resume, on_step=on_step, previews=previews
            )
        assert motion_model is not None
        if isinstance(config, SparseCtrlConfig):
            return train_sparse_ctrl(
                model, motion_model, clips, config, recipe.output, start_from=sparse_ctrl, resume=recipe.resume, on_step=on_step,
                previews=previews,
            )  # fmt: skip
        if isinstance(config, MotionLoraConfig):
            return train_motion_lora(
                model, motion_model, clips, config, files, resume=recipe.resume, on_step=on_step, previews=previews
            )
        files = MotionDirectorFiles.in_folders(config.name, recipe.output, recipe.output)
        return train_motion_director(
            model, motion_model, clips, config, files, resume=recipe.resume, on_step=on_step, previews=previews
        ).temporal


def _encoded(recipe: Recipe, encoder: Encoder) -> LatentClips:
    """Several processes first encode a share of the clips each; then all are in the cache for every one of them."""
    if recipe.shards:
        shares = len(recipe.shards[processes.rank() :: processes.count()])
        with tqdm(total=shares, desc="encoding", unit="shard", disable=not processes.is_first()) as bar:
            return encode_shards(recipe.shards, encoder, recipe.output / "cache", bar.update)
    cache, mine = recipe.output / "cache", list(dict.fromkeys(recipe.videos))[processes.rank() :: processes.count()]

    def encode(videos: Sequence[Clip]) -> LatentClips:
        with tqdm(total=len(videos), desc="encoding", unit="video", disable=not processes.is_first()) as bar:
            return encode_clips(videos, encoder, cache, lambda done, total: bar.update())

    if processes.count() > 1 and mine:
        with suppress(DatasetError):  # none of this share can be used; whether any can is said below
            encode(mine)
    processes.wait()
    return encode(recipe.videos)
