"""Scores of 110 million weights, and the selection of their top 1%."""

from __future__ import annotations

from typing import Any

import torch

import fastmem
from benchmarks.cases import Case, Contestant, ours
from benchmarks.timing import measure

_WEIGHTS = 110_000_000
_FRACTION = 0.01


def cases(device: str) -> list[Case]:
    """Every case of this file on ``device``."""
    sample = {"w": torch.ones(2, device=device)}

    def pair() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        generator = torch.Generator(device).manual_seed(0)
        w, g = (torch.randn(_WEIGHTS, generator=generator, device=device) for _ in range(2))
        return w, g, torch.zeros(_WEIGHTS, device=device)

    def read(w: torch.Tensor, g: torch.Tensor, score: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return w.amax(), g.amax()

    def eager(w: torch.Tensor, g: torch.Tensor, score: torch.Tensor) -> None:
        score.add_((w * g).abs())

    def accumulate(w: torch.Tensor, g: torch.Tensor, score: torch.Tensor) -> None:
        fastmem.weight_importance({"w": w}, {"w": g}, scores={"w": score})

    def scores() -> tuple[torch.Tensor, ...]:
        generator = torch.Generator(device).manual_seed(0)
        return (torch.randn(_WEIGHTS, generator=generator, device=device).abs_(),)

    return [
        Case(
            name="weight_importance",
            operator="weight_importance",
            shape=f"({_WEIGHTS},)",
            dtype="float32",
            bytes=16 * _WEIGHTS,
            inputs=pair,
            contestants=(
                Contestant("eager", eager),
                Contestant("one read of weights and gradients", read),
                *ours("weight_importance", accumulate, (sample, sample)),
            ),
        ),
        Case(
            name="top_fraction",
            operator=f"top_fraction {_FRACTION:.0%}",
            shape=f"({_WEIGHTS},)",
            dtype="float32",
            bytes=4 * _WEIGHTS + _WEIGHTS // 8,
            inputs=scores,
            contestants=(
                Contestant("topk", lambda s: torch.topk(s, int(_FRACTION * _WEIGHTS))),
                *ours("top_fraction", lambda s: fastmem.top_fraction({"w": s}, _FRACTION), (sample, 1.0)),
            ),
        ),
    ]


def test_weight_importance(benchmark: Any, case: Case, contestant: Contestant, describe: None, request: Any) -> None:
    """Time one contestant."""
    measure(benchmark, contestant.run, case.inputs(), request.config.getoption("--bench-seconds"))
