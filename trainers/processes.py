"""Several processes that train together, as torchrun and accelerate launch start them. No host import.

Each draws the whole batch of a step from the step's generator and computes a block of it, as large as every other's; then
gradients and losses are averaged. So many processes learn what one with the same batch_size learns. The engine is PyTorch's
own, DDP, over gloo between CPUs and NCCL between GPUs. A process by itself is one of one, and nothing here costs it anything.
"""

from __future__ import annotations

import logging
import os
import signal
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.autograd.graph import get_gradient_edge
from torch.nn.parallel import DistributedDataParallel

from .config import ConfigError

LONGEST_WAIT = timedelta(hours=2)  # for another process that still encodes its share of the videos, or makes a preview

Rows = TypeVar("Rows", Tensor, list)


class ProcessLost(RuntimeError):
    """Another process of the training has ended before its time."""

    def __init__(self) -> None:
        super().__init__(
            "Another process of this training has ended: by an error, which it says itself, or because the system killed it, mostly "
            "for lack of memory. What was learnt is kept; the same command goes on from there."
        )


@dataclass(frozen=True)
class Place:
    """rank: this process's number among count."""

    rank: int = 0
    count: int = 1


_place = Place()
_store: Any = None
_asked_to_stop = False


def rank() -> int:
    return _place.rank


def count() -> int:
    return _place.count


def is_first() -> bool:
    """Whether this process writes files and shows progress; one does."""
    return _place.rank == 0


@contextmanager
def joined() -> Iterator[None]:
    """While open, this process is one of those that torchrun has started together, if it has."""
    global _place, _store
    if int(os.environ.get("WORLD_SIZE", 1)) == 1:
        yield
        return
    store, number, total = next(dist.rendezvous("env://", timeout=LONGEST_WAIT))  # pyright: ignore[reportPrivateImportUsage]
    # torchrun --max-restarts keeps one store, with the addresses of the processes that ended in it
    attempt = f"attempt {os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}"
    _store = dist.PrefixStore(attempt, store)  # pyright: ignore[reportPrivateImportUsage]
    dist.init_process_group(store=_store, rank=number, world_size=total, timeout=LONGEST_WAIT)
    _place = Place(number, total)
    if not is_first():
        logging.disable(logging.WARNING)  # all say the same
    try:
        yield
    finally:
        logging.disable(logging.NOTSET)
        _place, _store = Place(), None
        dist.destroy_process_group()


@contextmanager
def alone() -> Iterator[None]:
    """While open, every process draws and computes whole batches, all of them the same."""
    global _place
    before, _place = _place, Place()
    try:
        yield
    finally:
        _place = before


def check_batch(size: int) -> None:
    """Raise ConfigError for a batch that the processes cannot share equally."""
    if size % count():
        raise ConfigError(
            f"batch_size: expected a multiple of {count()}, the number of processes, which share each batch equally; found {size}. "
            f"Set it to {count() * -(-size // count())}, or start fewer processes."
        )


def share(batch: Rows) -> Rows:
    """This process's block of a whole batch, [rows / count, ...]. Neighbours stay together, as the frames of a clip must."""
    rows = len(batch) // count()
    return batch[rank() * rows : (rank() + 1) * rows]


class Averaging:
    """Runs backward passes so that every gradient is the average of all processes': by PyTorch's DDP (arXiv:2006.15704), which
    sends those that are ready while others are still computed. Those of sharded parameters are averages already."""

    def __init__(self, parameters: Iterable[Tensor]) -> None:
        self._own = [parameter for parameter in parameters if not hasattr(parameter, "full_tensor")]
        self._engine: DistributedDataParallel | None = None
        if count() > 1 and self._own:
            with _others():
                self._hook()

    def backward(self, loss: Tensor, last: bool) -> None:
        """last: of the batches that make a step; until then gradients only add up."""
        if count() == 1:
            loss.backward()
            return
        try:
            if self._engine is None:
                loss.backward()
                return
            if self._moved():
                self._hook(init_sync=False)
            with nullcontext() if last else self._engine.no_sync():
                self._engine(loss).backward()
        except RuntimeError as error:
            if isinstance(error, dist.DistError) or "gloo" in str(error):
                raise ProcessLost from error
            raise

    def _hook(self, init_sync: bool = True) -> None:
        # a path of MotionDirector's trains some of the parameters, the other the others
        self._engine = DistributedDataParallel(
            _Handed(self._own), find_unused_parameters=True, gradient_as_bucket_view=True, init_sync=init_sync
        )
        self._hooked = [get_gradient_edge(parameter).node for parameter in self._own]

    def _moved(self) -> bool:
        """Whether the host has had weights on another device since, as it may for a preview: they come back without DDP's hooks."""
        pairs = zip(self._own, self._hooked, strict=True)
        return any(one.requires_grad and get_gradient_edge(one).node is not node for one, node in pairs)


class _Handed(nn.Module):
    """A loss handed on: DDP looks for what it was computed from."""

    def __init__(self, parameters: Sequence[Tensor]) -> None:
        super().__init__()
        for number, parameter in enumerate(parameters):
            assert isinstance(parameter, nn.Parameter)
            self.register_parameter(str(number), parameter)
        # so that there is one: DDP warns in every process where there is none
        self.unused = nn.Parameter(torch.zeros(1, device=parameters[0].device))

    def forward(self, loss: Tensor) -> Tensor:
        return loss


def average_losses(losses: Mapping[str, float]) -> dict[str, float]:
    """Of all processes. Raises KeyboardInterrupt in all of them where one was asked to stop: at the same place, between steps."""
    if count() == 1:
        return dict(losses)
    values = torch.tensor([*losses.values(), _asked_to_stop], dtype=torch.float64)
    with _others():
        dist.all_reduce(values)
    *sums, stopped = values.tolist()
    if stopped:
        raise KeyboardInterrupt
    return {name: value / count() for name, value in zip(losses, sums, strict=True)}


def check_alike(what: Mapping[str, Any], advice: str) -> None:
    """Raise ConfigError, in every process, unless what is the same in all of them."""
    if count() == 1:
        return
    every: list[Any] = [None] * count()
    with _others():
        dist.all_gather_object(every, dict(what))
    if different := [key for key in what if any(other[key] != every[0][key] for other in every)]:
        found = "; ".join(f"{key} {', '.join(dict.fromkeys(str(other[key]) for other in every))}" for key in different)
        raise ConfigError(f"Expected the same {' and '.join(different)} in every process, found {found}. {advice}")


def wait() -> None:
    """Until all processes are here."""
    if count() > 1:
        with _others():
            dist.all_reduce(torch.zeros(1))  # unlike a barrier never by way of a GPU, which may be busy or full


def speaks() -> bool:
    """Whether this process is to say what went wrong: only the first that asks is."""
    try:
        return _store is None or _store.add("failed", 1) == 1
    except RuntimeError:  # the launcher is gone, too
        return True


@contextmanager
def stopped_together() -> Iterator[None]:
    """While open, Ctrl-C and the launcher's request to end (SIGTERM) are heard by average_losses, in all processes at once."""
    global _asked_to_stop
    if count() == 1:
        yield
        return

    def ask(*_: Any) -> None:
        global _asked_to_stop
        _asked_to_stop = True

    before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        _asked_to_stop = False
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def _others() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        raise ProcessLost from error
