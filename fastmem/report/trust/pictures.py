"""Pictures: the most confident false members of each set, and what the generator drew as it learnt."""

from __future__ import annotations

import numpy as np
from markupsafe import Markup

from fastmem.report.html import Exhibit, details, gallery, picture
from fastmem.report.tables import count, fixed
from fastmem.report.trust.run import Run

__all__ = ["false_members", "generator_grids"]

# Shown at once; the others open on a click.
_FIRST = ("test", "permuted", "fake")
_GRID_SIDE = 4


def false_members(run: Run) -> list[Markup]:
    """A gallery for each set that has false members: real, permuted and generated first."""
    first = [_set(run, name) for name in _FIRST if name in run.sets]
    others = [
        details(run.sets[name], body)
        for name in run.sets
        if name not in _FIRST and (body := _set(run, name, bare=True))
    ]
    return [part for part in (*first, *others) if part]


def generator_grids(run: Run) -> Markup:
    """Sixteen images of the same noise, at several points of the training."""
    grids = run.array("gan_grids", 5)
    steps = run.summary.child("generator").data.get("grid_steps")
    if grids is None or not len(grids) or not isinstance(steps, list):
        return Markup()
    exhibits = []
    for step, grid in zip(steps, grids, strict=False):
        side = min(_GRID_SIDE, int(len(grid) ** 0.5))
        alt = f"{side * side} generated images after {step} steps"
        exhibits.append(Exhibit(f"{count(float(step))} steps", [], picture(_montage(grid, side), alt)))
    return gallery(exhibits)


def _set(run: Run, name: str, *, bare: bool = False) -> Markup:
    pixels, sure = run.array(f"false_picture__{name}", 4), run.array(f"false_log_odds__{name}", 1)
    answer = run.array(f"false_answer__{name}", 1)
    title = run.sets[name]
    if pixels is None or sure is None or answer is None or pixels.dtype != np.uint8:
        return Markup()
    exhibits = [
        Exhibit(
            f"“{_class(run, int(label))}”",
            [f"log-odds {fixed(float(odds), 1)}"],
            picture(image, f"{title}, a false member"),
        )
        for image, odds, label in zip(pixels, sure, answer, strict=False)
    ]
    body = gallery(exhibits)
    return body if bare else Markup("<h3>{}</h3>\n{}").format(title, body)


def _class(run: Run, label: int) -> str:
    names = run.summary.child("data").texts("class_names")
    return names[label] if 0 <= label < len(names) else str(label)


def _montage(images: np.ndarray, side: int) -> np.ndarray:
    """``side`` x ``side`` images as one, [C, side H, side W]."""
    _, channels, height, width = images.shape
    grid = images[: side * side].reshape(side, side, channels, height, width)
    return grid.transpose(2, 0, 3, 1, 4).reshape(channels, side * height, side * width)
