"""Images that a model did not train on and is shown with and without a mark: in distribution, and out of it.

All come as stored images of the model's own shape: another data set is made grey or coloured and resized.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from fastmem.data.dataset import Dataset
from fastmem.data.sources import load_dataset
from fastmem.errors import InputError

__all__ = ["EvaluationImages", "evaluation_images", "fit_images"]

_LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601, what "convert to grey" means for pictures


@dataclass(frozen=True, eq=False)
class EvaluationImages:
    """Images to score a mark on.

    Args:
        name: What they are.
        x: uint8 [N, C, H, W].
        index: Number of each image in the data set it comes from [N].
    """

    name: str
    x: Tensor
    index: np.ndarray


def evaluation_images(
    source: str, held_out: Dataset, count: int, seed: int = 0, data_root: str | None = None
) -> EvaluationImages:
    """Images of the shape of ``held_out`` that no model under test trained on.

    Args:
        source: ``held-out`` (records like the training data), ``permuted`` (the same, the pixels of each in an order
            of its own: their histogram without their shape), ``noise`` (uniform bytes), or a data set as
            :func:`fastmem.data.load_dataset` takes it, made grey or coloured and resized.
        held_out: Records of the training data's kind that were held out.
        count: How many, at most as many as there are, drawn without repetition.
        seed: Decides which, and the noise.
        data_root: Folder of the named data sets.

    Raises:
        InputError: If there is no such source, or it holds no images.
    """
    if not held_out.is_image:
        raise InputError("evaluation", f"for samples of shape {list(held_out.input_shape)}", "a mark needs images")
    if count < 2:
        raise InputError("images", f"{count}", "give at least 2")
    rng = np.random.default_rng([seed, 9])
    if source == "noise":
        noise = rng.integers(0, 256, (count, *held_out.input_shape), dtype=np.uint8)
        return EvaluationImages("noise", torch.from_numpy(noise), np.arange(count))
    own = source in ("held-out", "permuted")
    dataset = held_out if own else load_dataset(source, data_root)
    if not dataset.is_image:
        raise InputError("evaluation", f"{source} has samples of shape {list(dataset.input_shape)}", "give images")
    index = np.sort(rng.permutation(len(dataset))[:count])
    x = fit_images(dataset.x[index], held_out.input_shape)
    if source == "permuted":
        planes = x.numpy().reshape(len(x), x.shape[1], -1)
        # All channels of an image alike: its colours stay together.
        order = np.stack([rng.permutation(planes.shape[2]) for _ in index])
        x = torch.from_numpy(np.take_along_axis(planes, order[:, None, :], axis=2).reshape(x.shape))
    return EvaluationImages(source if own else dataset.name, x, index)


def fit_images(images: Tensor, input_shape: Sequence[int]) -> Tensor:
    """Images made grey or coloured, and resized (bilinear, averaged when made smaller).

    Args:
        images: uint8 [N, C, H, W] with C of 1, 3 or 4 (the fourth, opacity, is left out).
        input_shape: (C, H, W) to come to, C of 1 or 3; any other C must be that of the images.

    Returns:
        uint8 [N, *input_shape].

    Raises:
        InputError: If the channels cannot be brought to that number.
    """
    depth, height, width = input_shape
    if images.shape[1] == depth and images.shape[2:] == (height, width):
        return images
    x = images.float()
    if x.shape[1] != depth:
        x = x[:, :3] if x.shape[1] == 4 else x
        if depth == 1 and x.shape[1] == 3:
            x = (x * torch.tensor(_LUMA)[:, None, None]).sum(dim=1, keepdim=True)
        elif depth == 3 and x.shape[1] == 1:
            x = x.expand(-1, 3, -1, -1)
        elif x.shape[1] != depth:
            raise InputError("evaluation", f"images of {images.shape[1]} channels for {depth}", "give grey or colour")
    if x.shape[2:] != (height, width):
        x = F.interpolate(x, (height, width), mode="bilinear", antialias=True, align_corners=False)
    return x.round().clamp(0, 255).to(torch.uint8)
