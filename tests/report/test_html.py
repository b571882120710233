"""The page: one file that needs nothing from outside, and lets no name from outside become markup."""

from __future__ import annotations

import base64
import io

import jinja2
import numpy as np
import pytest
from markupsafe import Markup
from PIL import Image

from fastmem.report import html
from fastmem.report.html import Card, Exhibit, Head, LegendEntry, Section

EVIL = "</style><script>alert(1)</script>\" onload='x"


def evil_page() -> str:
    head = Head(EVIL, EVIL, EVIL, [Card(EVIL, EVIL, EVIL, "warn")])
    bodies = [
        html.pairs([(EVIL, EVIL)], code=True),
        html.notes([(EVIL, EVIL)]),
        html.details(EVIL, html.gallery([Exhibit(EVIL, [EVIL], html.picture(np.zeros((1, 2, 2), np.uint8), EVIL))])),
        html.figure(Markup("<p></p>"), EVIL, [LegendEntry(EVIL, "ink")]),
    ]
    return html.page(EVIL, head, [Section(f"s{place}", EVIL, body, EVIL) for place, body in enumerate(bodies)])


def test_names_from_outside_stay_text(read_page) -> None:
    page = read_page(evil_page())
    assert page.text.count(EVIL) >= 16
    assert page.tags("img")[0]["alt"] == EVIL


def test_the_check_above_catches_a_page_without_escaping(read_page, monkeypatch) -> None:
    careless = jinja2.Environment(loader=jinja2.PackageLoader("fastmem.report"), autoescape=False)
    monkeypatch.setattr(html, "_environment", lambda: careless)
    with pytest.raises(AssertionError):
        read_page(evil_page())


def test_a_page_forbids_scripts_and_requests_and_knows_both_schemes(read_page) -> None:
    source = html.page("t", Head("k", "a", "s", []), [Section("x", "X", Markup("<p>body</p>"), half=True)])
    page = read_page(source)
    policy = next(meta["content"] for meta in page.tags("meta") if "http-equiv" in meta)
    assert policy.startswith("default-src 'none'")
    assert "script" not in policy
    assert "prefers-color-scheme: dark" in source
    assert "@media print" in source
    assert any(meta.get("name") == "viewport" for meta in page.tags("meta"))
    assert page.tags("html")[0]["lang"] == "en"
    assert [link["href"] for link in page.tags("a")] == ["#x"]


def _decode(markup: Markup) -> np.ndarray:
    data = str(markup).partition("base64,")[2].partition('"')[0]
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(data))))


def test_a_picture_keeps_its_pixels() -> None:
    random = np.random.default_rng(0)
    grey = random.integers(0, 256, (1, 8, 5), dtype=np.uint8)
    colour = random.integers(0, 256, (3, 8, 5), dtype=np.uint8)
    assert np.array_equal(_decode(html.picture(grey, "grey")), grey[0])
    assert np.array_equal(_decode(html.picture(colour, "colour")), np.moveaxis(colour, 0, -1))
    five = np.stack([np.full((4, 4), value, np.uint8) for value in (0, 10, 20, 30, 43)])
    assert np.array_equal(_decode(html.picture(five, "five channels")), np.full((4, 4), 21))


def test_a_large_picture_is_made_small() -> None:
    small = _decode(html.picture(np.full((3, 400, 200), 77, np.uint8), "large"))
    assert small.shape == (96, 48, 3)
    assert (small == 77).all()


def test_parts_that_are_missing_drop_out_side_by_side() -> None:
    assert str(html.side_by_side(None, Markup("<p>one</p>"))).count("<p>") == 1
