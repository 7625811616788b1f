"""Which process of a launch this one is, and its device.

`accelerate launch` and `torchrun` start several processes and number them. Search and evaluation need no more of them:
processes meet through files (`search.shards`, `eval.shared_results`) and there are no collectives, so a process that
dies stops no other; a launcher may stop all of its own when one fails.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

import torch
from accelerate import PartialState  # type: ignore[import-untyped]
from accelerate.utils import get_cpu_distributed_information  # type: ignore[import-untyped]


@dataclass(frozen=True)
class Launch:
    """This process among those that were launched together.

    Attributes:
        rank: its number, 0 up; 0 shows the progress and prints the results.
        processes: processes launched together, on all machines.
        device: the torch device for the model, or "auto".
    """

    rank: int
    processes: int
    device: str

    @property
    def is_main(self) -> bool:
        """Whether this is the process that talks to the user."""
        return self.rank == 0


def this_process(device: str) -> Launch:
    """Find out which process this is; started alone (plain `python -m ...`), it is the only one.

    Args:
        device: torch device, or "auto": then each process of a launch gets its own GPU, where there are any.
    """
    if "LOCAL_RANK" not in os.environ:
        return Launch(0, 1, device)
    if device == "auto" and torch.cuda.is_available():
        state = PartialState()
        launch = Launch(state.process_index, state.num_processes, str(state.device))
        # The group has said all that is wanted of it. Kept, it would warn at the end or wait for a process that died.
        state.destroy_process_group()
        return launch
    known = get_cpu_distributed_information()
    return Launch(known.rank, known.world_size, device)
