"""The processes that train together: started by torchrun, or this one alone."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from s2d.devices import find_device
from s2d.errors import InputError

T = TypeVar("T")


@dataclass(frozen=True)
class Processes:
    """This process among those that share every optimizer step.

    Attributes:
        device: of this process.
        rank: its number, from 0.
        world: how many there are.
    """

    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    rank: int = 0
    world: int = 1

    def wrap(self, model: nn.Module) -> nn.Module:
        """The model with gradients that are averages over the processes."""
        if self.world == 1:
            return model
        return DistributedDataParallel(model, device_ids=[self.device] if self.device.type == "cuda" else None)

    def sum(self, values: Tensor) -> Tensor:
        """Over the processes, in place."""
        if self.world > 1:
            dist.all_reduce(values)
        return values

    def wait(self) -> None:
        """Until every process is here."""
        if self.world > 1:
            dist.barrier()

    @contextlib.contextmanager
    def on_first(self, context: AbstractContextManager[T]) -> Iterator[T]:
        """Enter a context on the first process alone. All get its value; where it is refused, the others just end."""
        if self.world == 1:
            with context as value:
                yield value
            return
        told: list = [None, None]
        with contextlib.ExitStack() as stack:
            if self.rank == 0:
                try:
                    told[0] = stack.enter_context(context)
                except InputError as error:
                    told[1] = str(error)
                    dist.broadcast_object_list(told)
                    raise
            dist.broadcast_object_list(told)
            if told[1] is not None:
                raise SystemExit(2)
            yield told[0]
            self.wait()


@contextlib.contextmanager
def join_processes(device: str = "cpu") -> Iterator[Processes]:
    """Join those that ``torchrun`` started (it says so in the environment), if it did.

    Args:
        device: ``"cpu"``, ``"cuda"`` (of several processes each takes the GPU of its local rank), or ``"cuda:N"``.

    Raises:
        InputError: the device is not here.
    """
    world = int(os.environ.get("WORLD_SIZE", "1"))
    if device == "cuda" and world > 1:
        device = f"cuda:{os.environ['LOCAL_RANK']}"
    found = find_device(device)
    if world == 1:
        yield Processes(found)
        return
    if found.type == "cuda":
        torch.cuda.set_device(found)
    # The first process validates and merges while the others wait.
    dist.init_process_group("nccl" if found.type == "cuda" else "gloo", timeout=timedelta(hours=12))
    try:
        yield Processes(found, dist.get_rank(), world)
    finally:
        dist.destroy_process_group()
