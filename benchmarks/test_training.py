"""Many models on the cores of this machine: workers of one thread each, as the engine starts them.

The baseline is what one would write without fastmem: a process a core, in each one model after another in eager PyTorch,
batches gathered by index from normalised records in memory, ``torch.optim.SGD(fused=True)``, and for the small
perceptron without ``fused`` too. Each contestant trains the same number of models for the same number of steps, and says
at the end how many of its own records each has right; processes are started, warmed up and waited for outside the clock.
"""

from __future__ import annotations

import functools
import multiprocessing
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.cases import Case, Contestant
from benchmarks.timing import measure
from fastmem.data import rank_design
from fastmem.models import build_model
from fastmem.training import Recipe, train_models

_MODELS = 64


@dataclass(frozen=True)
class _Setting:
    """A row of the table: the network, the records and how much of a training is timed."""

    name: str
    shape: tuple[int, ...]
    records: int
    options: dict[str, Any]
    batch: int
    models: int  # of the 64, how many a call trains
    epochs: int

    def build(self, seed: int) -> nn.Module:
        return build_model("cnn" if "channels" in self.options else "mlp", self.shape, 10, seed, **self.options)

    def data(self) -> tuple[Tensor, Tensor, Tensor]:
        """Noise of the data set's shape: what is learnt does not change how long a step takes."""
        generator = torch.Generator().manual_seed(0)
        x = torch.randint(0, 256, (self.records, *self.shape), generator=generator).to(torch.uint8)
        y = torch.randint(0, 10, (self.records,), generator=generator)
        return x, y, torch.from_numpy(rank_design(_MODELS, self.records, 0))[: self.models]

    @property
    def recipe(self) -> Recipe:
        return Recipe(epochs=self.epochs, batch_size=self.batch)


_SETTINGS = (
    _Setting("mlp_784_512_256_10", (1, 28, 28), 10_000, {"hidden": (512, 256)}, 128, 2, 3),
    _Setting("mlp_64_128_10", (1, 8, 8), 1_797, {"hidden": (128,)}, 64, 4, 20),
    _Setting("cnn_28x28", (1, 28, 28), 740, {"channels": 32}, 128, 2, 2),
)


class _Unpooled(nn.Module):
    """The two-convolution network as its papers write it: ReLU, then pooling."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        m: Any = self.model
        x = F.max_pool2d(F.relu(m.conv1(x)), 2)
        x = F.max_pool2d(F.relu(m.conv2(x)), 2)
        return m.output(F.relu(m.hidden(x.flatten(1))))


def _eager(setting: _Setting, places: range, data: tuple[Tensor, Tensor, Tensor], *, fused: bool, last: bool) -> None:
    x, y, keep = data
    inputs = x.float().div_(255).sub_(0.5).div_(0.25)
    memory_format = torch.channels_last if last else torch.contiguous_format
    for place in places:
        model = setting.build(place)
        if "channels" in setting.options:
            model = _Unpooled(model)
            nn.utils.convert_conv2d_weight_memory_format(model, memory_format)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, fused=fused)
        records = keep[place].nonzero()[:, 0]
        for _ in range(setting.epochs):
            for rows in records[torch.randperm(len(records))].tensor_split(-(-len(records) // setting.batch)):
                batch = inputs[rows]
                if last:
                    batch = batch.contiguous(memory_format=memory_format)
                loss = F.cross_entropy(model(batch), y[rows])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
        _accuracy(model.eval(), inputs[records], y[records], memory_format)


@torch.no_grad()
def _accuracy(model: nn.Module, x: Tensor, y: Tensor, memory_format: torch.memory_format) -> float:
    """As training by fastmem ends: how many of its records the model has right."""
    parts = (part.contiguous(memory_format=memory_format) for part in x.split(1024))
    logits = torch.cat([model(part) for part in parts])
    return float((logits.argmax(dim=1) == y).double().mean())


def _ours(setting: _Setting, places: range, data: tuple[Tensor, Tensor, Tensor]) -> None:
    x, y, keep = data
    normalisation = (torch.tensor([0.5]), torch.tensor([0.25]))
    train_models(setting.build, x, y, keep[places.start : places.stop], setting.recipe, list(places), normalisation)


def _work(setting: _Setting, places: range, train: Callable[..., None], orders: Connection) -> None:
    torch.set_num_threads(1)
    data = setting.data()
    while orders.recv():
        train(setting, places, data)
        orders.send(True)


class _Workers:
    """A process for each thread of the row, each with its share of the models; kept for all calls of a contestant."""

    def __init__(self, setting: _Setting, train: Callable[..., None]) -> None:
        self._setting, self._train = setting, train
        self._pipes: list[Connection] = []
        self._processes: list[Any] = []

    def __call__(self, *_: Tensor) -> None:
        self._start(torch.get_num_threads())
        for pipe in self._pipes:
            pipe.send(True)
        for pipe in self._pipes:
            pipe.recv()

    def _start(self, count: int) -> None:
        if len(self._pipes) == count:
            return
        self.stop()
        context = multiprocessing.get_context("spawn")
        for worker in range(count):
            places = range(self._setting.models * worker // count, self._setting.models * (worker + 1) // count)
            ours, theirs = context.Pipe()
            process = context.Process(target=_work, args=(self._setting, places, self._train, theirs), daemon=True)
            process.start()
            self._pipes.append(ours)
            self._processes.append(process)

    def stop(self) -> None:
        for pipe in self._pipes:
            pipe.send(False)
        for process in self._processes:
            process.join()
        self._pipes, self._processes = [], []


def cases(device: str) -> list[Case]:
    """Every case of this file; a GPU has a driver of its own for many models."""
    return [_case(setting) for setting in _SETTINGS] if device == "cpu" else []


def _case(setting: _Setting) -> Case:
    data = setting.data()
    steps = sum(setting.epochs * -(-int(row.sum()) // setting.batch) for row in data[2])
    ways: dict[str, Callable[..., None]] = {"eager": functools.partial(_eager, fused=True, last=False)}
    if "channels" in setting.options:
        ways["eager channels-last"] = functools.partial(_eager, fused=True, last=True)
    if setting.name == "mlp_64_128_10":
        ways["eager, SGD not fused"] = functools.partial(_eager, fused=False, last=False)
    ways["fastmem cpu"] = _ours
    return Case(
        name=setting.name,
        operator=f"training {setting.name}, a process a thread",
        shape=f"{setting.models} models, {steps} steps of {setting.batch}",
        dtype="float32",
        bytes=sum(parameter.numel() for parameter in setting.build(0).parameters()) * 16 * steps,
        inputs=lambda: (torch.zeros(1),),
        contestants=tuple(
            Contestant(name, _Workers(setting, train), ours=name.startswith("fastmem")) for name, train in ways.items()
        ),
    )


def test_training(benchmark: Any, case: Case, contestant: Contestant, describe: None, request: Any) -> None:
    """Time one contestant; its processes end with it."""
    measure(benchmark, contestant.run, case.inputs(), request.config.getoption("--bench-seconds"))
    contestant.run.stop()  # type: ignore[attr-defined]
