"""Whole attacks on ready signals: LiRA with every model as a target, RMIA's exact count."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

import fastmem
from benchmarks.cases import Case, Contestant
from benchmarks.timing import measure
from fastmem.ops.rmia import rmia
from fastmem.signals import Signals

_LIRA = (256, 50_000, 2)
# One target in numpy takes seconds: it stands for all of them, and the row says so.
_NUMPY_TARGETS = 1
_RMIA = (64, 50_000, 50_000)


def cases(device: str) -> list[Case]:
    """Every case of this file; attacks read signals in the machine's memory."""
    return [_lira(), _rmia_attack(), _rmia_count()] if device == "cpu" else []


def _lira() -> Case:
    models, records, queries = _LIRA

    def inputs() -> tuple[torch.Tensor, ...]:
        generator = torch.Generator().manual_seed(0)
        keep = torch.rand(models, records, generator=generator).argsort(0) < models // 2
        margin = torch.randn(models, records, queries, generator=generator, dtype=torch.float64)
        return margin.add_(keep[..., None] * 0.5), keep

    def numpy_per_target(margin: torch.Tensor, keep: torch.Tensor) -> list[np.ndarray]:
        """Vectorised over records, one target at a time; the first of them only."""
        return [_numpy_lira(margin.numpy(), keep.numpy(), target) for target in range(_NUMPY_TARGETS)]

    def ours(margin: torch.Tensor, keep: torch.Tensor) -> np.ndarray:
        labels = np.zeros(records, dtype=np.int64)
        signals = Signals(labels=labels, keep=keep.numpy(), stats={"margin": margin.numpy()})
        return fastmem.attacks.LiRA(variant="online")(signals)

    return Case(
        name="lira_online",
        operator="LiRA online, all targets",
        shape=f"M={models} N={records} A={queries}",
        dtype="float64",
        bytes=models * records * (queries * 8 + 8 + 1),
        inputs=inputs,
        contestants=(
            Contestant(f"numpy, {_NUMPY_TARGETS} of {models} targets", numpy_per_target),
            Contestant("fastmem cpu", ours, ours=True),
        ),
        work=models / _NUMPY_TARGETS,
    )


def _numpy_lira(margin: np.ndarray, keep: np.ndarray, target: int) -> np.ndarray:
    others = np.arange(len(margin)) != target
    log_ratio = 0.0
    for side, sign in ((keep, 1.0), (~keep, -1.0)):
        values = np.where(side[others][..., None], margin[others], np.nan)
        mu, sigma = np.nanmedian(values, 0), np.nanstd(values, 0)
        log_ratio = log_ratio + sign * (-0.5 * ((margin[target] - mu) / sigma) ** 2 - np.log(sigma))
    return np.asarray(log_ratio).mean(-1)


def _rmia_inputs() -> tuple[torch.Tensor, ...]:
    references, records, population = _RMIA
    generator = torch.Generator().manual_seed(0)
    margin = torch.randn(references + 1, records, 1, generator=generator, dtype=torch.float64)
    keep = torch.rand(references + 1, records, generator=generator) < 0.5
    return margin, keep, torch.randn(references + 1, population, 1, generator=generator, dtype=torch.float64)


def _rmia_attack() -> Case:
    references, records, population = _RMIA

    def ours(margin: torch.Tensor, keep: torch.Tensor, margin_z: torch.Tensor) -> np.ndarray:
        labels = np.zeros(records, dtype=np.int64)
        signals = Signals(labels=labels, keep=keep.numpy(), stats={"margin": margin.numpy()})
        nobody = np.zeros((references + 1, population), dtype=bool)
        z = Signals(labels=np.zeros(population, dtype=np.int64), keep=nobody, stats={"margin": margin_z.numpy()})
        return fastmem.attacks.RMIA(variant="online", counts="all")(signals, targets=[0], population=z)

    return Case(
        name="rmia_attack",
        operator="RMIA online, 1 target, whole attack",
        shape=f"M={references + 1} N=Z={records}",
        dtype="float64",
        bytes=(references + 1) * (records + population) * 8,
        inputs=_rmia_inputs,
        contestants=(Contestant("fastmem cpu", ours, ours=True),),
    )


def _rmia_count() -> Case:
    _, records, population = _RMIA

    def inputs() -> tuple[torch.Tensor, ...]:
        generator = torch.Generator().manual_seed(0)
        return tuple(torch.randn(1, n, generator=generator, dtype=torch.float64) for n in (records, population))

    def every_pair(x: torch.Tensor, z: torch.Tensor) -> torch.Tensor:
        """The definition, in blocks that fit the cache."""
        return torch.cat([(block[:, None] > z[0]).sum(1) for block in x[0].split(256)]) / population

    contestants: tuple[Contestant, ...] = (Contestant("every pair", every_pair),)
    run: Callable[..., Any] = rmia
    return Case(
        name="rmia_count",
        operator="RMIA count",
        shape=f"N=Z={records}",
        dtype="float64",
        bytes=8 * (2 * records + population),
        inputs=inputs,
        contestants=(*contestants, Contestant("fastmem cpu", run, ours=True)),
    )


def test_membership(benchmark: Any, case: Case, contestant: Contestant, describe: None, request: Any) -> None:
    """Time one contestant."""
    measure(benchmark, contestant.run, case.inputs(), request.config.getoption("--bench-seconds"))
