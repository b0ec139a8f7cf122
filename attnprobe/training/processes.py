"""Data-parallel training: every process computes its share of each batch, and rank 0 writes the files.

``accelerate launch`` or ``torchrun`` starts the processes; without them there is one. Gradients are summed once per
step.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from attnprobe.errors import UsageError


@dataclass(frozen=True)
class Processes:
    """World size (``count``), and the rank and device of this process."""

    device: torch.device
    rank: int = 0
    count: int = 1

    @property
    def writes(self) -> bool:
        """Whether this process writes files and shows progress."""
        return self.rank == 0

    def add_up(self, tensors: Sequence[torch.Tensor]) -> None:
        """Replace each tensor by its sum over processes; shapes must be the same in every process."""
        if self.count == 1:
            return
        flat = torch.cat([tensor.reshape(-1) for tensor in tensors])
        torch.distributed.all_reduce(flat)
        for tensor, total in zip(tensors, flat.split([tensor.numel() for tensor in tensors]), strict=True):
            tensor.copy_(total.view_as(tensor))

    def totals(self, numbers: Sequence[float]) -> list[float]:
        """Return the sum of each number over processes."""
        if self.count == 1:
            return list(numbers)
        totals = torch.tensor(numbers, dtype=torch.float64, device=self.device)
        torch.distributed.all_reduce(totals)
        return totals.tolist()

    def wait(self) -> None:
        """Wait until every process reaches this call."""
        if self.count > 1:
            torch.distributed.barrier()


def processes(device: str) -> Processes:
    """Return the world size, and the rank and device of this process.

    Under ``accelerate launch`` or ``torchrun`` every process gets its own device; otherwise it is ``device``. Raises
    `UsageError` if the device cannot be used.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        from accelerate import PartialState  # slow to import, and a single process does not need it

        state = PartialState(cpu=device == "cpu")
        return Processes(torch.device(state.device or device), state.process_index, state.num_processes)
    try:
        return Processes(torch.empty(0, device=device).device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).strip().split("\n")[0]
        raise UsageError(f"device={device!r} cannot be used: {reason}") from error
