"""Pictures in folders: a sub-folder a class."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import torch

from fastmem.data.dataset import Dataset
from fastmem.errors import InputError

__all__ = ["load_folder", "picture_files", "read_picture"]

_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm"})


def load_folder(folder: Path, resize: int | None = None) -> Dataset:
    """A data set from ``folder/CLASS/picture.png`` (or ``.jpg``, ``.webp``, ...).

    Classes are numbered by sorted name and pictures ordered by sorted path, so the same files give the same data set
    everywhere. Grey pictures stay grey when all are; otherwise all become RGB.

    Args:
        folder: Holds a sub-folder a class.
        resize: Make every picture this many pixels high and wide (bicubic).

    Raises:
        InputError: If there are fewer than two classes, a picture does not open, or sizes differ and ``resize`` is
            not given.
    """
    if resize is not None and resize < 1:
        raise InputError("resize", f"{resize}", "give a number of pixels")
    classes = sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    files = [(label, path) for label, name in enumerate(classes) for path in picture_files(name)]
    if len(classes) < 2 or not files:
        raise InputError(
            "data",
            f"{str(folder)!r} has {len(classes)} sub-folders with {len(files)} pictures",
            f"it needs a sub-folder a class with pictures ({', '.join(sorted(_SUFFIXES))})",
        )
    pictures = [read_picture(path, resize) for _, path in files]
    sizes = Counter(picture.shape[:2] for picture in pictures)
    if len(sizes) > 1:
        found = ", ".join(f"{height} x {width} ({count})" for (height, width), count in sizes.most_common(4))
        more = ", ..." if len(sizes) > 4 else ""
        raise InputError(
            "data", f"pictures of {len(sizes)} sizes in {str(folder)!r}: {found}{more}", "give one size with --resize"
        )
    if len({picture.ndim for picture in pictures}) > 1:
        pictures = [np.repeat(p[..., None], 3, axis=2) if p.ndim == 2 else p for p in pictures]
    stack = np.stack(pictures)
    x = stack[:, None] if stack.ndim == 3 else stack.transpose(0, 3, 1, 2)
    y = torch.tensor([label for label, _ in files])
    names = tuple(path.name for path in classes)
    return Dataset(folder.resolve().name, torch.from_numpy(np.ascontiguousarray(x)), y, len(classes), None, names)


def picture_files(folder: Path) -> list[Path]:
    """The pictures in a folder and below it, by sorted path."""
    return sorted(path for path in folder.rglob("*") if path.suffix.lower() in _SUFFIXES and path.is_file())


def read_picture(path: Path, resize: int | None = None) -> np.ndarray:
    """uint8 [H, W] of a grey picture, [H, W, 3] of any other.

    Raises:
        InputError: If it does not open, or has more than 8 bits a pixel.
    """
    from PIL import Image  # a slow import, needed here alone

    try:
        with Image.open(path) as opened:
            mode, image = opened.mode, opened.convert("L" if opened.mode in ("1", "L", "LA") else "RGB")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise InputError("data", f"cannot read picture {str(path)!r} ({error})", "repair or remove it") from error
    if mode.startswith(("I", "F")):
        raise InputError(
            "data", f"picture {str(path)!r} has more than 8 bits a pixel (mode {mode})", "save it with 8 bits"
        )
    if resize is not None:
        image = image.resize((resize, resize), Image.Resampling.BICUBIC)
    return np.asarray(image)
