"""One model after another, by ordinary PyTorch: takes any network and any recipe, and is what other ways must equal."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import nn

from fastmem.errors import InputError
from fastmem.training.batches import Batches
from fastmem.training.evaluate import model_dtype
from fastmem.training.job import Job, TrainedModel, stream_seed
from fastmem.training.progress import Progress
from fastmem.training.step import Step

__all__ = ["PlainTrainer", "check_batch_norm", "initial_model", "own_randomness"]


class PlainTrainer:
    """Trains the models of a job one at a time."""

    name = "plain"

    def supports(self, job: Job, model: nn.Module) -> str | None:
        """None: it takes everything."""
        return None

    def train(self, job: Job) -> list[TrainedModel]:
        """Train them all, in the job's order."""
        return [_train(job, index) for index in range(len(job.seeds))]


def _train(job: Job, index: int) -> TrainedModel:
    """One model, from its initial weights to its last."""
    seed = job.seeds[index]
    with own_randomness(job.device) as reseed:
        reseed(seed)
        model = job.build(seed).to(job.device)
        reseed(stream_seed(seed, "dropout"))
        progress = Progress(job, index)
        _fit(job, index, model, progress)
        return progress.result(model)


def _fit(job: Job, index: int, model: nn.Module, progress: Progress) -> None:
    memory_format = torch.contiguous_format
    if job.x.ndim == 4 and getattr(model, "channels_last", False):
        memory_format = torch.channels_last
        nn.utils.convert_conv2d_weight_memory_format(model, memory_format)
    batches = Batches(job, index, model_dtype(model), memory_format)
    check_batch_norm(model, batches.sizes)
    step = Step(model, job.recipe, job.device)
    sizes = torch.tensor(batches.sizes, dtype=torch.float64)
    rates = iter(job.recipe.rates(len(sizes)))
    model.train()
    ended = False
    while not ended:
        losses = [step(x, y, next(rates)) for x, y in batches.epoch()]
        loss = torch.stack(losses).double().cpu() @ (sizes / sizes.sum())  # the epoch's only wait for a GPU
        ended = progress.ends(model, float(loss))


def initial_model(job: Job, index: int) -> nn.Module:
    """The model at place ``index`` before its training, on the CPU; torch's global generators are left as they were."""
    with own_randomness(job.device) as reseed:
        reseed(job.seeds[index])
        return job.build(job.seeds[index])


@contextmanager
def own_randomness(device: torch.device) -> Iterator[Callable[[int], None]]:
    """Within, what is yielded reseeds torch's global generators for one model; afterwards they are as before."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):

        def reseed(seed: int) -> None:
            torch.default_generator.manual_seed(seed)
            if device.type == "cuda":
                with torch.cuda.device(device):
                    torch.cuda.manual_seed(seed)

        yield reseed


def check_batch_norm(model: nn.Module, sizes: list[int]) -> None:
    """Refuse batches of one record, which have no variance, for a network that divides by it."""
    if min(sizes) == 1 and any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in model.modules()):
        raise InputError(
            "batch_size",
            f"{max(sizes)} leaves a batch of 1 record, on which batch normalisation fails",
            "give at least 3",
        )
