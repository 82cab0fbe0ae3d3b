"""Trainings of several processes on gloo: the weights of one process, one of them killed, one of them speaking."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from diffdirector.tests.host.provision import ROOT, provision
from diffdirector.tests.trainers.test_cli import shipped
from diffdirector.tests.trainers.test_shards import write_shards
from diffdirector.trainers import processes
from diffdirector.trainers.checkpoint import load_state
from diffdirector.trainers.config import ConfigError, MotionModuleConfig
from diffdirector.trainers.sharding import check_shardable


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of what ranks.py trains, each training in a folder of its own."""
    folder = tmp_path_factory.mktemp("ranks")
    command = [sys.executable, str(ROOT / "tests/host/as_package.py"), "tests.trainers.ranks", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


def difference(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> float:
    """Of all together, relative."""
    apart = sum(float((found[name].double() - value.double()).square().sum()) for name, value in expected.items())
    return (apart / sum(float(value.double().square().sum()) for value in expected.values())) ** 0.5


def gradients(state: dict[str, Any]) -> dict[str, torch.Tensor]:
    """As AdamW remembers them."""
    groups = [optimizer["state"] for optimizer in state["optimizers"]]
    return {f"{group} {name}": of["exp_avg"] for group, known in enumerate(groups) for name, of in known.items()}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("recipe", "count"), [("module", 2), ("module", 4), ("director", 2), ("adapter", 2), ("sparse", 2)]
)
def test_processes_learn_what_one_with_the_same_batch_learns(trained: Path, recipe: str, count: int) -> None:
    one, several = (load_state(trained / str(number) / f"{recipe}.training") for number in (1, count))
    assert difference(several["parameters"], one["parameters"]) < 1e-6
    assert 0 < difference(gradients(several), gradients(one)) < 1e-4
    for found, expected in zip(several["losses"], one["losses"], strict=True):
        assert found == pytest.approx(expected, rel=1e-5)


@pytest.mark.slow
def test_a_killed_process_ends_the_job_and_the_next_goes_on_to_the_same_bits(trained: Path) -> None:
    ended = {name: (trained / name / "outcome.txt").read_text() for name in ("2", "killed", "restarted")}
    assert ended == {"2": "done", "killed": "[(1, -9)]", "restarted": "done"}
    assert (trained / "killed" / "lost.txt").read_text() == "0"  # the other process said it, and kept what was learnt
    whole, kept, restarted = (load_state(trained / name / "module.training") for name in ended)
    assert 2 <= kept["step"] < restarted["step"] == whole["step"] == 4
    for part in ("parameters", "averaged"):
        assert all(torch.equal(restarted[part][name], value) for name, value in whole[part].items())
    assert restarted["losses"] == whole["losses"]


@pytest.mark.slow
def test_weights_that_the_host_has_moved_in_one_process_are_averaged_as_before(trained: Path) -> None:
    stayed, moved = (load_state(trained / name / "module.training") for name in ("2", "moved"))
    assert (trained / "moved" / "outcome.txt").read_text() == "done"
    assert all(torch.equal(moved["parameters"][name], value) for name, value in stayed["parameters"].items())


@pytest.mark.slow
def test_only_the_first_process_writes(trained: Path) -> None:
    assert len(list((trained / "2").glob("*.training"))) == 4
    assert not [path for path in (trained / "2" / "others").rglob("*") if path.is_file()]


@pytest.mark.slow
def test_a_mistake_is_said_once(trained: Path) -> None:
    said = {(trained / "mistaken" / f"{rank}.txt").read_text() for rank in range(2)}
    assert said == {"1", f"--config: expected a recipe file, found no {trained / 'mistaken' / 'recipe.toml'}"}


def test_batches_that_cannot_be_shared_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    processes.check_batch(5)
    monkeypatch.setattr(processes, "_place", processes.Place(1, 4))
    assert processes.share(torch.arange(8)).tolist() == [2, 3]
    with processes.alone():
        assert processes.is_first() and processes.share([1, 2, 3]) == [1, 2, 3]
    with pytest.raises(
        ConfigError, match="batch_size: expected a multiple of 4, .* found 5. Set it to 8, or start fewer"
    ):
        processes.check_batch(5)


@pytest.mark.slow
def test_sharded_weights_are_those_of_one_process_and_go_on_to_the_same_bits(trained: Path) -> None:
    one, sharded, parts = (load_state(trained / name / "module.training") for name in ("1", "sharded", "sharded/parts"))
    assert difference(sharded["parameters"], one["parameters"]) < 1e-5
    assert 0 < difference(gradients(sharded), gradients(one)) < 1e-4
    for part in ("parameters", "averaged"):
        assert all(torch.equal(parts[part][name], value) for name, value in sharded[part].items())
    expected, found = (load_file(trained / name / "module.safetensors") for name in ("1", "sharded"))
    assert all(torch.allclose(value, expected[key], atol=1e-3) for key, value in found.items())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({}, "sharded: expected several processes .* found one"),
        ({"optimizer": "Lion"}, "the optimizer AdamW, found Lion"),
    ],
)
def test_what_cannot_be_sharded_is_refused(
    changes: dict[str, str], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if changes:
        monkeypatch.setattr(processes, "_place", processes.Place(0, 2))
    with pytest.raises(ConfigError, match=message):
        check_shardable(MotionModuleConfig("m", sharded=True, **changes).optimizer)


@pytest.mark.slow
def test_each_process_encodes_its_share_of_the_shards(trained: Path) -> None:
    shares = [(trained / "encoding" / f"{rank}.txt").read_text().split(": ") for rank in range(2)]
    assert [share for share, _ in shares] == ["6 of 9", "3 of 9"]
    assert shares[0][1] == shares[1][1]


@pytest.mark.slow
def test_the_command_line_trains_under_accelerate(base: Path, tmp_path: Path) -> None:
    """On shards that two processes share, which must agree on what is in the cache, with sharded weights. (accelerate calls torchrun;
    ranks.py does without it.)"""
    source = write_shards(tmp_path / "shards", 3)
    text = (
        shipped("motion_module", base)
        .replace('"input/videos"', f'"{source}"')
        .replace("sharded = false", "sharded = true")
        .replace('prompt = "a panda in a forest"', 'prompt = ""')
    )
    (tmp_path / "recipe.toml").write_text(text.replace("batch_size = 1", "batch_size = 2"))
    launch = "accelerate.commands.launch --multi_gpu --num_processes 2 --num_machines 1 --mixed_precision no --dynamo_backend no"
    command = [sys.executable, "-m", *launch.split(), str(ROOT / "train.py")]
    environment = os.environ | {"COMFYUI_PATH": str(provision().comfyui)}
    done = subprocess.run(
        [*command, "--config", "recipe.toml", "--cpu"], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("my-motion-module.safetensors is done.") == 1
    assert done.stderr.count("1 of the 10 samples in the shards were left out") == 1
    assert load_state(tmp_path / "models/animatediff_models/my-motion-module.training")["step"] == 2
