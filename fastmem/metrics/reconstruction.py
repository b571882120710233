"""How much reconstructed images resemble training images, one to one, and whether that is more than chance.

All of this needs the training set: it is what an evaluator knows, not an attacker. Correlations are of images as the network
sees them (the training mean subtracted), where the mean image has none; SSIM is of pixels. A correlation or SSIM by itself
means little at a few hundred pixels: every function here takes controls as well as candidates.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastmem.compat import import_torchvision
from fastmem.errors import InputError

__all__ = [
    "Matching",
    "best_similarities",
    "correlations",
    "greedy_matching",
    "image_ssim",
    "membership_permutation",
    "ncc",
    "paired_sign_flips",
]

_WINDOW = 3
_BLOCK = 512


def correlations(images: Any, candidates: Any) -> np.ndarray:
    """Pearson correlation of every image with every candidate over all of their values, float64 [n, m].

    Args:
        images: [n, ...].
        candidates: [m, ...] of the same sample shape. A constant image or candidate correlates 0 with all.

    Raises:
        InputError: The sample shapes differ.
    """
    a, b = _pair(images, candidates)
    return _cosines(a.reshape(len(a), 1, -1), b.reshape(len(b), 1, -1))


def ncc(images: Any, candidates: Any) -> np.ndarray:
    """Normalised cross-correlation: the mean over channels of their Pearson correlations, float64 [n, m].

    Haim et al. 2022 rank candidates by the distance of images standardised so, ``2 d (1 - ncc)``. It equals
    :func:`correlations` for images of one channel.

    Args:
        images: [n, C, H, W]; other shapes count as one channel.
        candidates: [m, C, H, W].
    """
    a, b = _pair(images, candidates)
    channels = a.shape[1] if a.ndim == 4 else 1
    return _cosines(a.reshape(len(a), channels, -1), b.reshape(len(b), channels, -1))


@dataclass(frozen=True, eq=False)
class Matching:
    """Images and candidates in pairs, each in one at most.

    Attributes:
        candidate: Of each image, -1 where candidates ran out, int64 [n].
        similarity: Of the pair, NaN where there is none, float64 [n].
    """

    candidate: np.ndarray
    similarity: np.ndarray

    def count(self, threshold: float) -> int:
        """Pairs whose similarity is above a threshold."""
        return int((np.nan_to_num(self.similarity, nan=-np.inf) > threshold).sum())

    @property
    def mean(self) -> float:
        """Mean similarity of the images that have a candidate."""
        return float(np.nanmean(self.similarity)) if np.isfinite(self.similarity).any() else math.nan


def greedy_matching(similarity: np.ndarray) -> Matching:
    """Pairs the most similar image and candidate, then the most similar of the rest, and so on.

    So a candidate that resembles many images counts once, and duplicates of a candidate do not count again.

    Args:
        similarity: [n, m]; ties go to the lower image, then the lower candidate.
    """
    n, m = similarity.shape
    candidate, found = np.full(n, -1, np.int64), np.full(n, np.nan)
    taken = np.zeros(m, bool)
    for place in np.argsort(-similarity, axis=None, kind="stable"):
        image, other = divmod(int(place), m)
        if candidate[image] < 0 and not taken[other]:
            candidate[image], found[image], taken[other] = other, similarity[image, other], True
            if taken.all() or (candidate >= 0).all():
                break
    return Matching(candidate, found)


def best_similarities(similarity: np.ndarray) -> np.ndarray:
    """Of each image with its nearest candidate, however many images share it, [n]."""
    return similarity.max(axis=1)


def image_ssim(images: Any, candidates: Any, rescale: str = "clamp") -> np.ndarray:
    """Structural similarity of pairs of images with pixels in [0, 1], over windows of 3 x 3, float64 [n].

    Args:
        images: [n, C, H, W].
        candidates: [n, C, H, W], beyond [0, 1] where the attack left them there.
        rescale: ``clamp`` to [0, 1], or ``minmax`` of each candidate, as the papers publish. The second shifts black
            and white of images that have outliers: at correlation 0.99 it may give a third of what clamping gives.

    Raises:
        InputError: The shapes differ, or there is no such rescaling.
    """
    a, b = _pair(images, candidates)
    if a.shape != b.shape or a.ndim != 4:
        raise InputError("candidates", f"{list(b.shape)} for images {list(a.shape)}", "give pairs [n, C, H, W]")
    if rescale == "minmax":
        low, high = (value.reshape(-1, 1, 1, 1) for value in (b.flatten(1).amin(1), b.flatten(1).amax(1)))
        b = (b - low) / (high - low).clamp(min=1e-12)
    elif rescale != "clamp":
        raise InputError("rescale", f"{rescale!r}", "give clamp or minmax")
    import_torchvision()  # torchmetrics imports it, and beside a CPU build of torch it needs help
    from torchmetrics.functional.image import structural_similarity_index_measure as ssim

    values = [
        ssim(
            b[at : at + _BLOCK].clamp(0, 1),
            a[at : at + _BLOCK].clamp(0, 1),
            gaussian_kernel=False,
            kernel_size=_WINDOW,
            data_range=1.0,
            reduction="none",
        )
        for at in range(0, len(a), _BLOCK)
    ]
    parts = [value[0] if isinstance(value, tuple) else value for value in values]
    return torch.cat([part.reshape(-1) for part in parts]).numpy().astype(np.float64) if parts else np.zeros(0)


def membership_permutation(train: np.ndarray, held_out: np.ndarray, permutations: int, seed: int) -> float:
    """p-value for "the candidates resemble training images more than held-out ones", by exchange of the two.

    Both sets are drawn alike from one source, so if candidates knew nothing of who trained, every split of the union into
    sets of these sizes would be as likely. The statistic is the mean of nearest-candidate similarities.

    Args:
        train: Of each training image with its nearest candidate [n].
        held_out: The same of images that were not trained on [h].
        permutations: Random splits; p is at least 1 / (permutations + 1).
        seed: Of the splits.

    Returns:
        ``(1 + splits at least as extreme) / (1 + permutations)``.
    """
    pool, n = np.concatenate([train, held_out]), len(train)
    rng = np.random.default_rng(seed)
    order = rng.permuted(np.broadcast_to(np.arange(len(pool)), (permutations, len(pool))), axis=1)[:, :n]
    # (a sum of the same numbers in another order may differ in its last bits)
    extreme = int((pool[order].sum(1) >= pool[:n].sum() - 1e-9).sum())
    return (1 + extreme) / (1 + permutations)


def paired_sign_flips(attack: np.ndarray, control: np.ndarray, permutations: int, seed: int) -> float:
    """p-value for "the attack's similarity to an image is above the control's", by flips of the signs of differences.

    Args:
        attack: Of each training image [n]; NaN counts as 0 (no candidate).
        control: The same of the control.
        permutations: Random flips; all of them where there are fewer.
        seed: Of the flips.
    """
    difference = np.nan_to_num(attack) - np.nan_to_num(control)
    n = len(difference)
    if 2**n <= permutations:
        signs = 1 - 2 * ((np.arange(2**n)[:, None] >> np.arange(n)) & 1)
        return float((signs @ difference >= difference.sum() - 1e-9).mean())
    signs = np.random.default_rng(seed).choice((-1, 1), (permutations, n))
    extreme = int((signs @ difference >= difference.sum() - 1e-9).sum())
    return (1 + extreme) / (1 + permutations)


def _pair(images: Any, candidates: Any) -> tuple[Tensor, Tensor]:
    a, b = (torch.as_tensor(value).detach().cpu().double() for value in (images, candidates))
    if a.shape[1:] != b.shape[1:]:
        raise InputError("candidates", f"samples {list(b.shape[1:])} for images {list(a.shape[1:])}", "give one shape")
    return a, b


def _cosines(a: Tensor, b: Tensor) -> np.ndarray:
    """Mean over channels of cosines of centred vectors, from [n, channels, d] and [m, channels, d]."""
    units = []
    for value in (a, b):
        centred = value - value.mean(-1, keepdim=True)
        norm = centred.norm(dim=-1, keepdim=True)
        # What is constant up to rounding has no direction.
        flat = norm <= 1e-12 * (1 + value.norm(dim=-1, keepdim=True))
        units.append(torch.where(flat, 0.0, centred / norm.clamp(min=1e-300)))
    return torch.einsum("ncd,mcd->nm", *units).div_(a.shape[1]).clamp_(-1, 1).numpy()
