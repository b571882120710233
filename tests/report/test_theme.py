"""Text and marks are legible on every ground, and the series differ for colour-blind readers (own arithmetic here)."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from fastmem.report.theme import SERIES, TOKENS, css_variables, light

SCHEMES = ("light", "dark")
GROUNDS = ("page", "card", "shade")
# Machado, Oliveira and Fernandes (2009), severity 1, on linear RGB.
VISION = {
    "full": np.eye(3),
    "protanopia": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deuteranopia": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.01182, 0.04294, 0.968881]],
    "tritanopia": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.3039]],
}


def linear(colour: str) -> np.ndarray:
    values = np.array([int(colour[at : at + 2], 16) for at in (1, 3, 5)]) / 255
    return np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)


def contrast(one: str, other: str) -> float:
    dark, bright = sorted(float(linear(colour) @ [0.2126, 0.7152, 0.0722]) for colour in (one, other))
    return (bright + 0.05) / (dark + 0.05)


def lab(rgb: np.ndarray) -> np.ndarray:
    to_xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
    xyz = to_xyz @ np.clip(rgb, 0, 1) / [0.9505, 1.0, 1.089]
    cube = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
    return np.array([116 * cube[1] - 16, 500 * (cube[0] - cube[1]), 200 * (cube[1] - cube[2])])


def smallest_difference(colours: list[str], vision: str) -> float:
    seen = [lab(np.array(VISION[vision]) @ linear(colour)) for colour in colours]
    return min(float(np.linalg.norm(a - b)) for a, b in itertools.combinations(seen, 2))


@pytest.mark.parametrize("scheme", range(2), ids=SCHEMES)
@pytest.mark.parametrize("token", ["ink", "muted", "good", "warn", "bad"])
def test_text_has_contrast_4_5(token: str, scheme: int) -> None:
    assert min(contrast(TOKENS[token][scheme], TOKENS[ground][scheme]) for ground in GROUNDS) >= 4.5


@pytest.mark.parametrize("scheme", range(2), ids=SCHEMES)
@pytest.mark.parametrize("token", SERIES)
def test_lines_have_contrast_3(token: str, scheme: int) -> None:
    assert min(contrast(TOKENS[token][scheme], TOKENS[ground][scheme]) for ground in GROUNDS) >= 3


@pytest.mark.parametrize("scheme", range(2), ids=SCHEMES)
@pytest.mark.parametrize("vision", VISION)
def test_series_differ_for_every_reader(vision: str, scheme: int) -> None:
    assert smallest_difference([TOKENS[token][scheme] for token in SERIES], vision) >= 12


def test_the_measure_catches_the_classic_red_and_green() -> None:
    assert smallest_difference(["#c0392b", "#6d7a00"], "full") >= 12
    assert smallest_difference(["#c0392b", "#6d7a00"], "deuteranopia") < 12
    assert contrast("#000000", "#ffffff") == pytest.approx(21)


def test_light_values_lead_back_to_their_tokens() -> None:
    assert len({values[0] for values in TOKENS.values()}) == len(TOKENS)
    assert light("ink") == TOKENS["ink"][0]


def test_css_declares_every_token_once() -> None:
    for scheme, column in (("light", 0), ("dark", 1)):
        declared = css_variables(scheme)
        assert declared.count(";") == len(TOKENS)
        assert all(f"--{name}: {values[column]};" in declared for name, values in TOKENS.items())
