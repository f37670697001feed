"""Several processes on one batch: each takes its rows, and a step is what one process with all of them would take."""

from __future__ import annotations

import functools
import itertools
from abc import abstractmethod
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Trainer

BUCKET = 2**24  # numbers in one exchange


class SharedBatches(Trainer):
    """Mixin for a Trainer whose adapters learn in several processes, each with the base model on its own device.

    There is no DDP around the model: it would send all of the frozen base's buffers about and hook every backward pass.
    Gradients are averaged once a step instead, in buckets, as DDP would: losses count what all processes have in a
    step, and are multiplied by the number of processes.

    Accelerate fills up the last batch of an epoch with rows from its beginning, so that no process is without. Those
    rows are left out here (`leave_out`), or a step would be another one than of one process.
    """

    @abstractmethod
    def leave_out(self, batch: dict[str, Any], rows: int) -> dict[str, Any]:
        """The batch with its first `rows` rows alone; if that is none, one that weighs nothing."""

    def create_accelerator_and_postprocess(self) -> None:
        super().create_accelerator_and_postprocess()
        # Autocast as ever, and nothing wrapped: what transformers asks for where a model does its own exchange.
        self.accelerator.prepare_model = functools.partial(self.accelerator.prepare_model, evaluation_mode=True)

    def passes(self, batch: dict[str, Any]) -> Iterator[dict[str, Any]]:
        """Parts of a batch, one after the other of which goes forward and backward; their losses add up."""
        yield batch

    def training_step(self, model: nn.Module, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Tensor:
        step = super().training_step
        loss = torch.stack([step(model, part, *args, **kwargs) for part in self.passes(inputs)]).sum()
        if self.accelerator.sync_gradients and self.accelerator.num_processes > 1:
            average_gradients(
                [parameter for parameter in model.parameters() if parameter.requires_grad],
                self.accelerator.num_processes,
            )
        return loss

    def get_batch_samples(
        self, epoch_iterator: Iterator[dict[str, Any]], num_batches: int, device: torch.device
    ) -> tuple[list[dict[str, Any]], Any]:
        batches = list(itertools.islice(epoch_iterator, num_batches))
        if batches:
            batches[-1] = self._without_repeats(batches[-1], self.args.per_device_train_batch_size)
        return batches, self._get_num_items_in_batch(batches, device)

    def prediction_step(self, model: nn.Module, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        batch = self._without_repeats(inputs, self.args.per_device_eval_batch_size)
        return super().prediction_step(model, batch, *args, **kwargs)

    def _without_repeats(self, batch: dict[str, Any], size: int) -> dict[str, Any]:
        state = self.accelerator.gradient_state
        if self.accelerator.num_processes == 1 or not state.end_of_dataloader or state.remainder <= 0:
            return batch
        rows = min(size, max(0, state.remainder - size * self.accelerator.process_index))
        return batch if rows == size else self.leave_out(batch, rows)


@torch.no_grad()
def average_gradients(parameters: list[nn.Parameter], processes: int) -> None:
    """The mean of each gradient over all processes, in place of this process's own."""
    for bucket in _buckets([parameter.grad for parameter in parameters if parameter.grad is not None]):
        flat = torch.cat([gradient.flatten() for gradient in bucket])
        torch.distributed.all_reduce(flat)
        flat /= processes
        pieces = flat.split([gradient.numel() for gradient in bucket])
        for gradient, piece in zip(bucket, pieces, strict=True):
            gradient.copy_(piece.view_as(gradient))


def _buckets(gradients: list[Tensor]) -> Iterator[list[Tensor]]:
    """Few exchanges, and never a copy of all gradients at once."""
    bucket: list[Tensor] = []
    for gradient in gradients:
        if bucket and sum(map(Tensor.numel, bucket)) + gradient.numel() > BUCKET:
            yield bucket
            bucket = []
        bucket.append(gradient)
    if bucket:
        yield bucket
