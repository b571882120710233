"""Pictures: every training image beside what was made of it, best first, with the controls in the same grid."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from markupsafe import Markup

from fastmem.report.html import Exhibit, gallery, picture, render
from fastmem.report.reconstruct.results import Results
from fastmem.report.tables import fixed

__all__ = ["Tile", "candidate_gallery", "held_out_grid", "picture_grid"]

_COLUMNS = {
    "attack": "Reconstructed",
    "first_layer": "First-layer row",
    "first_layer_all": "Best of all rows",
    "untrained": "Untrained row",
    "random": "Random",
}


@dataclass(frozen=True)
class Tile:
    """A picture of the grid.

    Attributes:
        image: From :func:`fastmem.report.html.picture`.
        text: Below it.
        strong: Whether the text is set apart.
    """

    image: Markup
    text: str
    strong: bool = False


def picture_grid(results: Results) -> Markup:
    """A row for each training image, the best recovered first."""
    train, records = results.array("train_picture", 4), results.array("shown_record", 1)
    if train is None or records is None or train.dtype != np.uint8:
        return Markup()
    names = [name for name in _COLUMNS if results.array(f"picture__{name}", 4) is not None]
    rows = []
    for place, (image, record) in enumerate(zip(train, records, strict=False)):
        tiles = [Tile(picture(image, f"training image {int(record)}"), f"record {int(record)}")]
        for name in names:
            pictures, values = results.arrays[f"picture__{name}"], results.arrays[f"correlation__{name}"]
            alt = f"{_COLUMNS[name].lower()} for training image {int(record)}"
            tiles.append(Tile(picture(pictures[place], alt), fixed(float(values[place])), strong=name == "attack"))
        rows.append(tiles)
    return render(
        "reconstruct_grid.html.j2", headings=["Training image", *(_COLUMNS[name] for name in names)], rows=rows
    )


def held_out_grid(results: Results) -> Markup:
    """Held-out images beside the candidates nearest to them: resemblance by chance."""
    images, candidates = results.array("held_out_picture", 4), results.array("held_out_candidate", 4)
    values = results.array("held_out_correlation", 1)
    if images is None or candidates is None or values is None:
        return Markup()
    rows = [
        [
            Tile(picture(image, "image never trained on"), ""),
            Tile(picture(found, "nearest candidate"), fixed(float(value))),
        ]
        for image, found, value in zip(images, candidates, values, strict=False)
    ]
    return render("reconstruct_grid.html.j2", headings=["Never trained on", "Nearest candidate"], rows=rows)


def candidate_gallery(results: Results) -> Markup:
    """Candidates of a model whose training images nobody told."""
    pictures = results.array("candidate_picture", 4)
    if pictures is None:
        return Markup()
    return gallery(
        [
            Exhibit(f"candidate {place}", [], picture(image, f"candidate {place}"))
            for place, image in enumerate(pictures)
        ]
    )
