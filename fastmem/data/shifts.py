"""Records that no model was trained on, some of them far from anything that it was trained on.

The sets on which Hintersdorf, Struppek and Kersting (IJCAI 2022, arXiv:2111.09076) ask membership attacks: permuted
pixels, inputs that skip or repeat a step of the preprocessing, and images of another data set, made to fit in colour
and size. Pixels stay bytes; what reaches the network is decided by a *view*, since the two preprocessing errors have no
bytes of their own.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from fastmem.data.evaluation import fit_images
from fastmem.data.transforms import normalise
from fastmem.errors import InputError, UnknownNameError

__all__ = [
    "SHIFTS",
    "VIEWS",
    "gaussian_noise",
    "network_inputs",
    "permute_pixels",
    "photographs",
    "shifted_inputs",
]

VIEWS = ("normalised", "scaled", "raw")
SHIFTS = ("permute", "scale", "unnormalise")

# A crop of a photograph is taken this many times larger than asked and made smaller, so that it shows more than a blur.
_PHOTOGRAPH_CROP = 4


def network_inputs(batch: Tensor, view: str, mean: Tensor, std: Tensor) -> Tensor:
    """What a network is shown of stored records.

    Args:
        batch: uint8 images [B, C, H, W] or float32 features [B, D].
        view: ``"normalised"`` (as in training), ``"scaled"`` (normalised, then times 255: the scaling to [0, 1] was
            forgotten) or ``"raw"`` (pixel / 255, or the feature itself: the normalisation was forgotten).
        mean: As in :func:`fastmem.data.transforms.normalise`.
        std: As ``mean``.

    Returns:
        float32 of the same shape.

    Raises:
        UnknownNameError: If there is no such view.
    """
    if view not in VIEWS:
        raise UnknownNameError("view", view, VIEWS)
    if view == "raw":
        return batch.float() / 255 if batch.ndim == 4 else batch.float()
    inputs = normalise(batch, mean, std)
    return inputs * 255 if view == "scaled" else inputs


def shifted_inputs(x: Tensor, kind: str, mean: Tensor, std: Tensor, seed: int = 0) -> Tensor:
    """Network inputs of records under one shift of the paper.

    Args:
        x: Stored records, as for :func:`network_inputs`.
        kind: ``"permute"``, ``"scale"`` or ``"unnormalise"``.
        mean: Normalisation.
        std: The same.
        seed: Of the permutations.

    Returns:
        float32 of the shape of ``x``.

    Raises:
        UnknownNameError: If there is no such shift.
    """
    if kind not in SHIFTS:
        raise UnknownNameError("kind", kind, SHIFTS)
    if kind == "permute":
        return network_inputs(permute_pixels(x, seed), "normalised", mean, std)
    return network_inputs(x, "scaled" if kind == "scale" else "raw", mean, std)


def permute_pixels(x: Tensor, seed: int) -> Tensor:
    """Every record with its pixels in an order of its own, the same for all channels; features likewise.

    Args:
        x: [N, C, H, W] or [N, D], any dtype.
        seed: Non-negative integer.
    """
    pixels = x[0, 0].numel() if x.ndim == 4 else x.shape[1]
    places = np.tile(np.arange(pixels), (len(x), 1))
    order = torch.from_numpy(np.random.default_rng(seed).permuted(places, axis=1))
    if x.ndim == 2:
        return x.gather(1, order)
    return x.flatten(2).gather(2, order[:, None].expand(-1, x.shape[1], -1)).reshape(x.shape)


def gaussian_noise(count: int, like: Tensor, mean: Tensor, std: Tensor, seed: int) -> Tensor:
    """Independent Gaussian pixels (or features) with the data's own mean and standard deviation a channel.

    Args:
        count: N.
        like: Records whose shape and dtype it takes.
        mean: float32 [C] or [D], as for normalisation.
        std: The same.
        seed: Non-negative integer.

    Returns:
        uint8 [N, C, H, W], cut to 0 ... 255, or float32 [N, D].
    """
    values = torch.randn(count, *like.shape[1:], generator=torch.Generator().manual_seed(seed))
    if like.ndim == 2:
        return values * std + mean
    values = values * std.view(-1, 1, 1) + mean.view(-1, 1, 1)
    return (values * 255).round().clamp(0, 255).to(torch.uint8)


def photographs(count: int, shape: Sequence[int], seed: int) -> Tensor:
    """Random crops of the two photographs that come with scikit-learn (a temple and a flower): natural images at hand.

    Args:
        count: N.
        shape: (C, H, W), C of 1 or 3; a crop of four times that size, or as large as the photograph is, is reduced.
        seed: Non-negative integer.

    Returns:
        uint8 [N, *shape].

    Raises:
        InputError: If samples are not grey or RGB images.
    """
    from sklearn.datasets import load_sample_images  # a slow import, needed here alone

    if len(shape) != 3:
        raise InputError("photos", f"photographs for samples of shape {list(shape)}", "the data must be images")
    pictures = [torch.from_numpy(np.array(image)).permute(2, 0, 1) for image in load_sample_images().images]
    rng = np.random.default_rng(seed)
    crops = []
    for _ in range(count):
        picture = pictures[rng.integers(len(pictures))]
        height, width = (
            min(_PHOTOGRAPH_CROP * want, have) for want, have in zip(shape[1:], picture.shape[1:], strict=True)
        )
        top = rng.integers(picture.shape[1] - height + 1)
        left = rng.integers(picture.shape[2] - width + 1)
        crops.append(fit_images(picture[None, :, top : top + height, left : left + width], shape))
    return torch.cat(crops)
