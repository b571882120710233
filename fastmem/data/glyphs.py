"""Small marks drawn in ASCII: the 5x5 letter A of the unique-feature papers, further letters and symbols, and 3x3 forms.

Letters and symbols other than the one that is trained on serve as controls; the 3x3 forms fit 8x8 images.
"""

from __future__ import annotations

import numpy as np

from fastmem.errors import UnknownNameError

__all__ = ["GLYPH_NAMES", "glyph"]

_LARGE = {
    "A": "..#.. .#.#. ##### #...# #...#",
    "E": "##### #.... ####. #.... #####",
    "F": "##### #.... ####. #.... #....",
    "H": "#...# #...# ##### #...# #...#",
    "K": "#...# #..#. ###.. #..#. #...#",
    "L": "#.... #.... #.... #.... #####",
    "M": "#...# ##.## #.#.# #...# #...#",
    "O": ".###. #...# #...# #...# .###.",
    "T": "##### ..#.. ..#.. ..#.. ..#..",
    "V": "#...# #...# #...# .#.#. ..#..",
    "W": "#...# #...# #.#.# ##.## #...#",
    "X": "#...# .#.#. ..#.. .#.#. #...#",
    "Z": "##### ...#. ..#.. .#... #####",
    "plus": "..#.. ..#.. ##### ..#.. ..#..",
    "square": "##### #...# #...# #...# #####",
    "checker": "#.#.# .#.#. #.#.# .#.#. #.#.#",
    "diamond": "..#.. .#.#. #...# .#.#. ..#..",
}
_SMALL = {
    "A3": ".#. ### #.#",
    "H3": "#.# ### #.#",
    "L3": "#.. #.. ###",
    "T3": "### .#. .#.",
    "plus3": ".#. ### .#.",
    "x3": "#.# .#. #.#",
}
_GLYPHS = {**_LARGE, **_SMALL}

GLYPH_NAMES = tuple(_GLYPHS)


def glyph(name: str) -> np.ndarray:
    """The mark of this name: float32 [5, 5] or [3, 3] of zeros and ones.

    Raises:
        UnknownNameError: There is no such mark; the nearest names are given.
    """
    if name not in _GLYPHS:
        raise UnknownNameError("feature", name, GLYPH_NAMES)
    return np.array([[pixel == "#" for pixel in row] for row in _GLYPHS[name].split()], dtype=np.float32)
