"""The processes that train together, one to a device, and what they exchange."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from torch import Tensor

from lorarlhf.errors import UserError, first_line


@dataclass(frozen=True)
class Share:
    """This process's part of work that is split between several: a run of whole rows, in the order of processes."""

    process: int = 0
    processes: int = 1

    def of(self, rows: int, group: int = 1) -> range:
        """This process's rows out of `rows`; rows of one group (the responses to one prompt) stay together."""
        groups = rows // group
        first, last = (groups * (self.process + i) // self.processes for i in (0, 1))
        return range(first * group, last * group)

    def check(self, groups: int, key: str) -> None:
        """Raise UserError if some process would have nothing to do."""
        if groups < self.processes:
            raise UserError(f"{key}: {groups} prompts are too few for {self.processes} processes; raise it")


class ProcessGroup:
    """All processes of a launcher, or this one alone. Each exchange is made by all of them, in the same order.

    Attributes:
        share: this process's part of work that is split.
        is_main: whether this is the process that writes files and speaks to the user.

    Args:
        device: on which this process's tensors lie.
    """

    def __init__(self, device: torch.device) -> None:
        state = PartialState(cpu=device.type == "cpu")
        self.device = device
        self.share = Share(state.process_index, state.num_processes)
        self.is_main = bool(state.is_main_process)

    def sum(self, numbers: Tensor) -> Tensor:
        """The same tensor added up over all processes."""
        if self.share.processes > 1:
            torch.distributed.all_reduce(numbers)
        return numbers

    def sum_named(self, sums: Mapping[str, Tensor]) -> dict[str, float]:
        """Scalars added up by name over all processes, some of which may have nothing of a name."""
        totals: dict[str, float] = {}
        for part in self.gather([{name: value.item() for name, value in sums.items()}]):
            for name, value in part.items():
                totals[name] = totals.get(name, 0.0) + value
        return totals

    def any(self, here: bool) -> bool:
        """Whether something holds in any process."""
        return bool(self.sum(torch.tensor(float(here), device=self.device)))

    def gather(self, rows: Sequence[Any]) -> list[Any]:
        """Every process's rows, in the order of the processes: what each has of a table that is split between them."""
        return list(rows) if self.share.processes == 1 else list(gather_object(list(rows)))

    def gather_columns(self, columns: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Tensors [b] of every process as [B] on the CPU."""
        rows = self.gather(list(zip(*(column.tolist() for column in columns.values()), strict=True)))
        return {name: torch.tensor([row[k] for row in rows]) for k, name in enumerate(columns)}

    def barrier(self) -> None:
        """Wait until all processes have come here."""
        PartialState().wait_for_everyone()

    @contextlib.contextmanager
    def failing_together(self) -> Iterator[None]:
        """What fails in one process inside the block, which holds no exchange, fails in all, and each can say why.

        Without it the others would wait for ever in their next exchange for one that is gone (out of memory, say).
        """
        failure: Exception | None = None
        try:
            yield
        except Exception as error:
            failure = error
        reasons = self.gather([failure and first_line(failure)])
        if failure is not None:
            raise failure
        for process, reason in enumerate(reasons):
            if reason is not None:
                raise UserError(f"process {process}: {reason}")
