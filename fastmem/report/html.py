"""One self-contained HTML page: no network, no scripts, no external fonts; every name from outside is escaped.

A page is a :class:`Head` (the answer and its key figures) and a sequence of :class:`Section`. Bodies come from
:func:`render` (a template, with escaping on), from :func:`picture` and from :mod:`fastmem.report.plots`; nothing else
makes markup. As a second wall the page carries a content security policy that forbids scripts and any request.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

import jinja2
import numpy as np
from markupsafe import Markup
from PIL import Image

from fastmem.report.theme import css_variables

__all__ = [
    "Card",
    "Exhibit",
    "Head",
    "LegendEntry",
    "Section",
    "details",
    "figure",
    "gallery",
    "notes",
    "page",
    "pairs",
    "picture",
    "render",
    "side_by_side",
]

# Stored pictures are shown at about 100 pixels; a larger one would only make the file heavy.
_PICTURE_SIDE = 96


@dataclass(frozen=True)
class Card:
    """One key figure of the head.

    Attributes:
        label: What the number is.
        value: The number.
        detail: Its interval, its chance level, or what it means.
        tone: ``"good"``, ``"warn"`` or ``"bad"`` colours the card's edge; the words must say the same.
    """

    label: str
    value: str
    detail: str = ""
    tone: Literal["", "good", "warn", "bad"] = ""


@dataclass(frozen=True)
class Head:
    """What a reader sees first.

    Attributes:
        kind: The kind of report, above the answer.
        answer: The answer in one sentence.
        subject: What was studied: data, model, date.
        cards: Key figures.
    """

    kind: str
    answer: str
    subject: str
    cards: Sequence[Card]


@dataclass(frozen=True)
class Section:
    """One part of the page.

    Attributes:
        anchor: Its name in links, unique on the page.
        title: Its heading.
        body: Markup from this module, :mod:`fastmem.report.tables` or :mod:`fastmem.report.plots`.
        lead: One or two plain sentences under the heading.
        half: Two neighbours that are both half stand side by side on a wide screen.
    """

    anchor: str
    title: str
    body: Markup
    lead: str = ""
    half: bool = False


@dataclass(frozen=True)
class LegendEntry:
    """A line of a figure's legend.

    Attributes:
        label: What the line shows.
        token: Its colour (:mod:`fastmem.report.theme`).
        dashes: Its dash pattern as in SVG, empty for a solid line.
        width: Its width in points.
    """

    label: str
    token: str
    dashes: str = ""
    width: float = 2.0


@dataclass(frozen=True)
class Exhibit:
    """One picture of a gallery, or one field of it where there is no picture.

    Attributes:
        title: The line under the picture.
        lines: Smaller lines under the title.
        image: From :func:`picture`, or None.
    """

    title: str
    lines: Sequence[str]
    image: Markup | None = None


@cache
def _environment() -> jinja2.Environment:
    return jinja2.Environment(
        loader=jinja2.PackageLoader("fastmem.report"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def render(template: str, **context: Any) -> Markup:
    """Fill a template of ``fastmem/report/templates``; every string in the context is escaped."""
    return Markup(_environment().get_template(template).render(**context))


def figure(svg: Markup, caption: str, legend: Sequence[LegendEntry] = ()) -> Markup:
    """A figure with its legend and caption.

    Args:
        svg: The figure from :func:`fastmem.report.plots.draw`.
        caption: What to see in it.
        legend: Set in HTML, so that it wraps on a phone.

    Returns:
        A ``<figure>``.
    """
    return render("figure.html.j2", svg=svg, caption=caption, legend=legend)


def picture(pixels: np.ndarray, alt: str) -> Markup:
    """A small picture embedded as PNG, scaled down where a side is above 96 pixels.

    Args:
        pixels: uint8 [C, H, W]; one channel is grey, three are RGB, any other count is shown as its mean.
        alt: What the picture shows, for readers who do not see it.

    Returns:
        An ``<img>`` with a data URI.
    """
    if pixels.shape[0] == 3:
        image = Image.fromarray(np.ascontiguousarray(np.moveaxis(pixels, 0, -1)))
    else:
        image = Image.fromarray(np.rint(pixels.mean(axis=0)).astype(np.uint8))
    image.thumbnail((_PICTURE_SIDE, _PICTURE_SIDE))
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", optimize=True)
    return render("picture.html.j2", alt=alt, data=base64.b64encode(buffer.getvalue()).decode("ascii"))


def gallery(exhibits: Sequence[Exhibit]) -> Markup:
    """Pictures with their words, as many beside each other as fit; a numbered list, first is first."""
    return render("gallery.html.j2", exhibits=exhibits)


def pairs(items: Sequence[tuple[str, str]], *, code: bool = False) -> Markup:
    """Names and their values; ``code`` sets the values in a fixed-width font that may break anywhere (hashes)."""
    return render("pairs.html.j2", items=items, code=code)


def notes(items: Sequence[tuple[str, str]]) -> Markup:
    """Warnings: each a text, and in smaller print whom it concerns."""
    return render("notes.html.j2", items=items)


def details(title: str, body: Markup) -> Markup:
    """A part that opens on a click; in print it is as the reader left it."""
    return render("details.html.j2", title=title, body=body)


def side_by_side(*bodies: Markup | None) -> Markup:
    """Bodies beside each other on a wide screen, one below the other on a narrow one; those that are None drop out."""
    return render("side_by_side.html.j2", bodies=[body for body in bodies if body])


def page(title: str, head: Head, sections: Sequence[Section]) -> str:
    """The whole document.

    Args:
        title: The browser's title.
        head: What a reader sees first.
        sections: The parts, in reading order.

    Returns:
        HTML, a pure function of the arguments.
    """
    return render(
        "page.html.j2",
        title=title,
        head=head,
        sections=sections,
        light=css_variables("light"),
        dark=css_variables("dark"),
    )
