"""The processes that train one network together: each takes its share of every batch, and one of them writes.

They are started by ``accelerate launch``; without it there is one. Gradients are summed once a step.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from attnprobe.errors import UsageError


@dataclass(frozen=True)
class Processes:
    """How many there are, and which one this is."""

    device: torch.device
    rank: int = 0
    count: int = 1

    @property
    def writes(self) -> bool:
        """Whether this one writes files and shows progress."""
        return self.rank == 0

    def add_up(self, tensors: Sequence[torch.Tensor]) -> None:
        """Replace each tensor by its sum over the processes; each process gives tensors of the same shapes."""
        if self.count == 1:
            return
        flat = torch.cat([one.reshape(-1) for one in tensors])
        torch.distributed.all_reduce(flat)
        for one, summed in zip(tensors, flat.split([one.numel() for one in tensors]), strict=True):
            one.copy_(summed.view_as(one))

    def totals(self, numbers: Sequence[float]) -> list[float]:
        """Return the sum of each number over the processes."""
        if self.count == 1:
            return list(numbers)
        summed = torch.tensor(numbers, dtype=torch.float64, device=self.device)
        torch.distributed.all_reduce(summed)
        return summed.tolist()

    def wait(self) -> None:
        """Wait until every process has come here."""
        if self.count > 1:
            torch.distributed.barrier()


def processes(device: str) -> Processes:
    """Return this process and its device: the one named, or with ``accelerate launch`` one for each process.

    Raises `UsageError` where the device cannot be used.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        from accelerate import PartialState  # costs a second, and one process does not need it

        state = PartialState(cpu=device == "cpu")
        return Processes(torch.device(state.device or device), state.process_index, state.num_processes)
    try:
        return Processes(torch.empty(0, device=device).device)
    except (RuntimeError, AssertionError) as error:
        first = str(error).strip().split("\n")[0]
        raise UsageError(f"device={device!r} cannot be used: {first}") from error
