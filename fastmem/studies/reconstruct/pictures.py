"""Candidates as pictures."""

from __future__ import annotations

import math

import numpy as np
from PIL import Image
from torch import Tensor

__all__ = ["contact_sheet", "to_pixels"]

_SCALE, _GAP = 3, 2


def to_pixels(images: Tensor) -> np.ndarray:
    """Images [n, C, H, W] in [0, 1] as uint8; what lies beyond is clamped."""
    return (images.detach().cpu().double().clamp(0, 1) * 255).round().byte().numpy()


def contact_sheet(pixels: np.ndarray) -> Image.Image:
    """All images [m, C, H, W] in one picture, in order, row by row, three times their size."""
    m, channels, height, width = pixels.shape
    columns = max(1, math.ceil(math.sqrt(m)))
    rows = math.ceil(m / columns)
    sheet = np.zeros((rows * (height + _GAP), columns * (width + _GAP), 3), np.uint8)
    colour = pixels if channels == 3 else np.repeat(pixels.mean(1, keepdims=True).round().astype(np.uint8), 3, axis=1)
    for place, image in enumerate(colour):
        top, left = (place // columns) * (height + _GAP), (place % columns) * (width + _GAP)
        sheet[top : top + height, left : left + width] = image.transpose(1, 2, 0)
    whole = Image.fromarray(sheet)
    return whole.resize((whole.width * _SCALE, whole.height * _SCALE), Image.Resampling.NEAREST)
