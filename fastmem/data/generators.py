"""Where generated images come from: a function of the user's own, or a folder of pictures that somebody else made.

A *generator* is a function ``(count, seed) -> images``; what it returns is checked here, once, before a model sees it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastmem.data.evaluation import fit_images
from fastmem.data.folder import picture_files, read_picture
from fastmem.errors import InputError
from fastmem.imports import import_object, is_import_path

__all__ = ["Generate", "check_generated", "load_generator", "load_pictures"]

Generate = Callable[[int, int], Tensor]
"""``generate(count, seed)`` gives uint8 images [count, C, H, W]; the same arguments give the same images."""

_ACCEPTED = "return uint8 images, or floats from 0 to 1, [count, C, H, W] in the data's own shape"


def load_generator(source: str, shape: Sequence[int]) -> Generate:
    """A generator by its source.

    Args:
        source: ``package.module:function``, called with ``(count, seed)``, whose images must have the data's shape; or
            a folder of pictures, dealt out in the order of their names and adapted in colour and size. A folder has an
            end: asking for more is an error.
        shape: (C, H, W) of the data.

    Returns:
        The generator.

    Raises:
        InputError: If there is no such thing. When called: what :func:`check_generated` refuses, what the function
            raises, or more pictures than the folder holds.
    """
    if is_import_path(source):
        return _from_function(source, tuple(shape))
    folder = Path(source).expanduser()
    if not folder.is_dir():
        raise InputError(
            "generator", f"no folder {source!r}", "give dcgan, package.module:function, or a folder of pictures"
        )
    pictures = load_pictures(folder, shape)

    def deal(count: int, seed: int) -> Tensor:
        return check_generated(source, pictures[:count], count, tuple(shape))

    return deal


def load_pictures(folder: Path, shape: Sequence[int]) -> Tensor:
    """All pictures in a folder and below it, adapted to ``shape`` (C, H, W): uint8 [N, C, H, W].

    Raises:
        InputError: If there is none, or one does not open.
    """
    files = picture_files(folder)
    if not files:
        raise InputError("generator", f"no pictures in {str(folder)!r}", "give a folder of .png, .jpg or .webp files")
    pictures = []
    for file in files:
        pixels = torch.from_numpy(np.array(read_picture(file)))
        pixels = pixels[None] if pixels.ndim == 2 else pixels.permute(2, 0, 1)
        pictures.append(fit_images(pixels[None], shape))
    return torch.cat(pictures)


def check_generated(source: str, images: Any, count: int, shape: tuple[int, ...]) -> Tensor:
    """What a generator returned, as uint8 [count, *shape].

    Args:
        source: What to call the generator.
        images: A tensor or array; floats are taken for shares of full brightness.
        count: How many were asked for; more is cut, fewer is an error.
        shape: (C, H, W) of the data.

    Raises:
        InputError: For NaN or infinities, another shape (channels!), values out of range, or fewer images.
    """
    if not isinstance(images, Tensor):
        try:
            images = torch.from_numpy(np.array(images))
        except (TypeError, ValueError) as error:
            raise InputError("generator", f"{source} returned a {type(images).__name__}", _ACCEPTED) from error
    images = images.detach().cpu()
    if images.ndim != 4 or tuple(images.shape[1:]) != shape:
        raise InputError("generator", f"{source} returned shape {list(images.shape)} for data {list(shape)}", _ACCEPTED)
    if len(images) < count:
        raise InputError("generator", f"{source} gave {len(images)} images of {count}", "ask for fewer, or add images")
    images = images[:count]
    if images.is_floating_point():
        broken = ~torch.isfinite(images).flatten(1).all(dim=1)
        if broken.any():
            first = int(broken.nonzero()[0, 0])
            raise InputError(
                "generator",
                f"{source} returned NaN or infinities in {int(broken.sum())} of {count} images, first in image {first}",
                "mend the generator: its training may have diverged",
            )
        low, high = float(images.min()), float(images.max())
        if low < 0 or high > 1:
            raise InputError("generator", f"{source} returned values from {low:.3g} to {high:.3g}", _ACCEPTED)
        return (images * 255).round().to(torch.uint8)
    if images.dtype != torch.uint8:
        raise InputError("generator", f"{source} returned {str(images.dtype).removeprefix('torch.')}", _ACCEPTED)
    return images


def _from_function(source: str, shape: tuple[int, ...]) -> Generate:
    function = import_object("generator", source)
    if not callable(function):
        raise InputError("generator", f"{source} is a {type(function).__name__}", "name a function of (count, seed)")

    def generate(count: int, seed: int) -> Tensor:
        try:
            images = function(count, seed)
        except InputError:
            raise
        except Exception as error:  # a user's function may fail in any way
            reason = " ".join(f"{type(error).__name__}: {error}".split())
            raise InputError("generator", f"{source}({count}, {seed}) failed ({reason})", _ACCEPTED) from error
        return check_generated(source, images, count, shape)

    return generate
