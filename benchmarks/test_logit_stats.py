"""logit_margin and logit_stats: the statistics that membership attacks read."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F

import fastmem
from benchmarks.cases import Case, Contestant, compiled, ours
from benchmarks.timing import measure

_CPU_SHAPES = [(64 * 50000, 10), (8192, 1000)]
_GPU_SHAPES = [(256 * 50000, 10), (1 << 17, 1000)]


def eager_margin(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """The true logit minus the log-sum-exp of the others."""
    others = logits.scatter(-1, labels[..., None], float("-inf"))
    return logits.gather(-1, labels[..., None]).squeeze(-1) - others.logsumexp(-1)


def eager_stats(logits: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """All five statistics with plain PyTorch operators."""
    others = logits.scatter(-1, labels[..., None], float("-inf"))
    true = logits.gather(-1, labels[..., None]).squeeze(-1)
    log_probabilities = F.log_softmax(logits, -1)
    probabilities = log_probabilities.exp()
    margin = true - others.logsumexp(-1)
    entropy = -(probabilities * log_probabilities).sum(-1)
    return margin, F.softplus(-margin), true - others.amax(-1), probabilities.amax(-1), entropy


def cases(device: str) -> list[Case]:
    """Every case of this file on ``device``."""
    found = []
    for shape in _CPU_SHAPES if device == "cpu" else _GPU_SHAPES:
        sample = torch.empty((2, shape[-1]), device=device), torch.zeros(2, dtype=torch.int64, device=device)
        for operator, eager, mine, outputs in (
            ("logit_margin", eager_margin, fastmem.logit_margin, 1),
            ("logit_stats", eager_stats, fastmem.logit_stats, 5),
        ):

            def inputs(shape: tuple[int, int] = shape) -> tuple[torch.Tensor, torch.Tensor]:
                generator = torch.Generator(device).manual_seed(0)
                logits = 3 * torch.randn(shape, generator=generator, device=device)
                return logits, torch.randint(shape[-1], shape[:1], generator=generator, device=device)

            found.append(
                Case(
                    name=f"{operator} {shape} float32".replace(" ", "_"),
                    operator=operator,
                    shape=str(shape),
                    dtype="float32",
                    bytes=math.prod(shape) * 4 + shape[0] * (8 + 4 * outputs),
                    inputs=inputs,
                    contestants=(
                        Contestant("eager", eager),
                        Contestant("compile", compiled(eager)),
                        *ours(operator, mine, sample),
                    ),
                )
            )
    return found


def test_logit_stats(benchmark: Any, case: Case, contestant: Contestant, describe: None, request: Any) -> None:
    """Time one contestant."""
    measure(benchmark, contestant.run, case.inputs(), request.config.getoption("--bench-seconds"))
