"""A unique feature: a mark that one training image, or few, carry, and the marks that it is compared with.

Source: Hartley and Tsaftaris 2022, arXiv:2202.08099 and 2205.10079. A mark is pasted into stored images, before they
are normalised. Its *controls* are marks of the same size and ink that no model was trained on; the *contrast* is a
random patch in the same place, the same for every model.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastmem.data.glyphs import GLYPH_NAMES, glyph
from fastmem.errors import InputError, UnknownNameError

__all__ = [
    "CONTROL_KINDS",
    "WRITE_MODES",
    "ControlFeatures",
    "UniqueFeature",
    "insert_canary",
    "load_feature",
    "random_patches",
]

WRITE_MODES = ("opaque", "transparent")
CONTROL_KINDS = ("mirror", "permuted", "bernoulli", "glyphs")


@dataclass(frozen=True, eq=False)
class UniqueFeature:
    """A mark and its place in an image.

    Args:
        pattern: Values from 0 (black) to 1 (white): [h, w], or [c, h, w] with a plane a channel.
        offset: Row and column of its upper left pixel.
        mode: ``opaque`` overwrites every pixel below the mark, zeros included; ``transparent`` leaves the image where
            the mark is zero.
        channels: Which channels of an image to write: ``"all"``, or their numbers.
        alpha: Opacity of each pixel [h, w], from 0 to 1, as a PNG has it; by default what ``mode`` says.
        name: What to call it in reports.

    Raises:
        InputError: If values are outside [0, 1] or shapes do not fit each other.
    """

    pattern: np.ndarray
    offset: tuple[int, int] = (1, 1)
    mode: str = "opaque"
    channels: str | tuple[int, ...] = "all"
    alpha: np.ndarray | None = None
    name: str = "feature"

    def __post_init__(self) -> None:
        pattern = np.asarray(self.pattern, dtype=np.float32)
        if pattern.ndim == 2:
            pattern = pattern[None]
        if pattern.ndim != 3 or pattern.size == 0:
            raise InputError(
                "feature", f"a pattern of shape {list(np.shape(self.pattern))}", "give [h, w] or [c, h, w]"
            )
        _check_unit("feature", pattern)
        if self.mode not in WRITE_MODES:
            raise UnknownNameError("mode", self.mode, WRITE_MODES)
        if len(self.offset) != 2 or min(self.offset) < 0:
            raise InputError("offset", f"{tuple(self.offset)}", "give a row and a column, from 0 on")
        if self.alpha is not None:
            alpha = np.asarray(self.alpha, dtype=np.float32)
            if alpha.shape != pattern.shape[1:]:
                raise InputError("alpha", f"shape {list(alpha.shape)}", f"give one of {list(pattern.shape[1:])}")
            _check_unit("alpha", alpha)
            object.__setattr__(self, "alpha", alpha)
        object.__setattr__(self, "pattern", pattern)
        object.__setattr__(self, "offset", tuple(int(place) for place in self.offset))
        if self.channels != "all":
            object.__setattr__(self, "channels", tuple(int(channel) for channel in self.channels))

    @property
    def size(self) -> tuple[int, int]:
        """Height and width in pixels."""
        return self.pattern.shape[1], self.pattern.shape[2]

    @property
    def ink(self) -> int:
        """How many pixels are not black, counted once where there are several channels."""
        return int((self.pattern.max(axis=0) > 0).sum())

    @property
    def opacity(self) -> np.ndarray:
        """How much of each pixel the mark covers: float32 [h, w] from 0 to 1."""
        if self.alpha is not None:
            return self.alpha
        if self.mode == "transparent":
            return (self.pattern.max(axis=0) > 0).astype(np.float32)
        return np.ones(self.size, dtype=np.float32)

    def with_pattern(self, pattern: np.ndarray, name: str) -> UniqueFeature:
        """Another pattern of the same size, written in the same way at the same place; a PNG's opacity stays."""
        return UniqueFeature(pattern, self.offset, self.mode, self.channels, self.alpha, name)

    def check(self, input_shape: Sequence[int]) -> None:
        """Refuses images that this mark cannot be pasted into.

        Args:
            input_shape: (C, H, W).

        Raises:
            InputError: If samples are no images, the mark is larger than the image, lies outside of it, or has other
                channels.
        """
        if len(input_shape) != 3:
            raise InputError("feature", f"for samples of shape {list(input_shape)}", "a mark needs images [C, H, W]")
        depth, height, width = input_shape
        h, w = self.size
        if h > height or w > width:
            raise InputError(
                "feature", f"a mark of {h} x {w} pixels in images of {height} x {width}", "give a smaller mark"
            )
        top, left = self.offset
        if top + h > height or left + w > width:
            raise InputError(
                "offset",
                f"a mark of {h} x {w} at row {top}, column {left} of images of {height} x {width}",
                f"give a row up to {height - h} and a column up to {width - w}",
            )
        written = range(depth) if self.channels == "all" else self.channels
        if any(not 0 <= int(channel) < depth for channel in written):
            raise InputError("channels", f"{self.channels} of images with {depth}", f"give numbers below {depth}")
        if self.pattern.shape[0] not in (1, len(written)):
            raise InputError(
                "feature",
                f"a mark of {self.pattern.shape[0]} channels for {len(written)} of the image",
                f"give 1 or {len(written)}",
            )

    def apply(self, images: Tensor, patches: Tensor | None = None) -> Tensor:
        """The images with the mark, as a copy.

        Args:
            images: [N, C, H, W], uint8 or floating in [0, 1]; not yet normalised.
            patches: A pattern for each image [N, 1 or C, h, w] in place of the mark's own, written over the whole of
                its place in ``opaque`` mode.

        Returns:
            The same shape and dtype.

        Raises:
            InputError: If the mark does not fit, or floating images leave [0, 1].
        """
        self.check(images.shape[1:])
        whole = images.dtype == torch.uint8
        if not whole:
            if not images.is_floating_point():
                raise InputError("images", f"{images.dtype}".removeprefix("torch."), "give uint8, or floats in [0, 1]")
            if images.numel() and (not float(images.min()) >= 0 or not float(images.max()) <= 1):
                raise InputError("images", "values outside [0, 1]", "paste before normalising")
        pattern = torch.from_numpy(self.pattern)[None] if patches is None else patches
        opacity = torch.from_numpy(self.opacity)
        if patches is not None and self.mode == "transparent" and self.alpha is None:
            opacity = (pattern.amax(dim=1, keepdim=True) > 0).float()
        pattern, opacity = pattern.to(images.device), opacity.to(images.device)
        top, left = self.offset
        h, w = self.size
        channels = list(range(images.shape[1]) if self.channels == "all" else map(int, self.channels))
        marked = images.clone()
        window = marked[:, channels, top : top + h, left : left + w]
        mixed = window * (1 - opacity) + pattern * (255 if whole else 1) * opacity
        marked[:, channels, top : top + h, left : left + w] = (mixed.round() if whole else mixed).to(images.dtype)
        return marked


def load_feature(
    source: str,
    *,
    offset: tuple[int, int] = (1, 1),
    mode: str = "opaque",
    channels: str | tuple[int, ...] = "all",
) -> UniqueFeature:
    """A mark by name or from a picture.

    Args:
        source: A name of :data:`fastmem.data.glyphs.GLYPH_NAMES` (``A`` is the papers'), or a picture file, such as a
            PNG of a few pixels; its transparency is kept.
        offset: Row and column of the upper left pixel.
        mode: ``opaque`` or ``transparent``.
        channels: Which channels of an image to write.

    Raises:
        InputError: If there is no such name or file, or it is no picture.
    """
    if source in GLYPH_NAMES:
        return UniqueFeature(glyph(source), offset, mode, channels, name=source)
    path = Path(source).expanduser()
    if not path.suffix:
        raise UnknownNameError("feature", source, [*GLYPH_NAMES, "FILE.png"])
    from PIL import Image  # a slow import, needed here alone

    try:
        with Image.open(path) as picture:
            grey = picture.mode in ("1", "L", "LA", "I", "I;16")
            pixels = np.asarray(picture.convert("LA" if grey else "RGBA"), dtype=np.float32) / 255
    except FileNotFoundError as error:
        raise InputError("feature", f"no file {source!r}", "check the path, or name a mark such as A") from error
    except (OSError, ValueError, Image.DecompressionBombError) as error:
        raise InputError("feature", f"{source!r} is no readable picture ({error})", "give a PNG file") from error
    colour, alpha = np.moveaxis(pixels[..., :-1], -1, 0), pixels[..., -1]
    own = alpha if alpha.min() < 1 else None
    return UniqueFeature(colour, offset, mode, channels, own, path.stem)


@dataclass(frozen=True)
class ControlFeatures:
    """Marks like a given one that no model was trained on.

    Args:
        kind: ``mirror``: left-right symmetric patterns with as many white pixels as the mark (3,780 for the letter A,
            itself left out); ``permuted``: the mark's own pixels in another order; ``bernoulli``: each pixel black or
            white by a coin; ``glyphs``: the other letters and symbols of its size.
        n: How many, all different.
        seed: Decides which.
    """

    kind: str = "mirror"
    n: int = 25
    seed: int = 0

    def like(self, feature: UniqueFeature) -> list[UniqueFeature]:
        """The controls of a mark.

        Raises:
            InputError: If the kind is unknown, or there are not that many.
        """
        if self.kind not in CONTROL_KINDS:
            raise UnknownNameError("controls", self.kind, CONTROL_KINDS)
        if self.n < 0:
            raise InputError("controls", f"{self.n}", "give at least 0")
        patterns = self._patterns(feature)
        return [feature.with_pattern(pattern, f"control {place}") for place, pattern in enumerate(patterns)]

    @property
    def _rng(self) -> np.random.Generator:
        return np.random.default_rng([self.seed, 7])

    def _patterns(self, feature: UniqueFeature) -> list[np.ndarray]:
        if self.kind == "glyphs":
            found = [glyph(name) for name in GLYPH_NAMES]
            others = [mark for mark in found if mark.shape == feature.size and not _equal(mark, feature.pattern)]
            if len(others) < self.n:
                raise _too_few(self.n, len(others), self.kind, feature)
            return [others[place] for place in self._rng.permutation(len(others))[: self.n]]
        chosen: dict[bytes, np.ndarray] = {feature.pattern.tobytes(): feature.pattern}
        rng = self._rng
        # Different ones are wanted: where there are hardly more than n, the last ones take many draws to meet.
        for _ in range(200 * (self.n + 10)):
            if len(chosen) > self.n:
                break
            pattern = self._draw(feature, rng)
            chosen.setdefault(pattern.tobytes(), pattern)
        if len(chosen) <= self.n:
            raise _too_few(self.n, len(chosen) - 1, self.kind, feature)
        return list(chosen.values())[1:]

    def _draw(self, feature: UniqueFeature, rng: np.random.Generator) -> np.ndarray:
        h, w = feature.size
        if self.kind == "bernoulli":
            return rng.integers(0, 2, (1, h, w)).astype(np.float32)
        if self.kind == "permuted":
            planes = feature.pattern.reshape(len(feature.pattern), -1)
            return np.ascontiguousarray(planes[:, rng.permutation(h * w)].reshape(feature.pattern.shape))
        return _mirror_symmetric(h, w, feature, rng)


def random_patches(feature: UniqueFeature, n: int, seed: int) -> Tensor:
    """The contrast: a patch of coin tosses for each of n images, float32 [n, 1, h, w], the same for every model."""
    patches = np.random.default_rng([seed, 8]).integers(0, 2, (n, 1, *feature.size))
    return torch.from_numpy(patches.astype(np.float32))


def insert_canary(x: Tensor, y: Tensor, index: int | Sequence[int], feature: UniqueFeature) -> tuple[Tensor, Tensor]:
    """The data set with the mark on one record or on several; labels stay as they are.

    Args:
        x: Images [N, C, H, W].
        y: Labels [N].
        index: Record number, or several.
        feature: The mark.

    Returns:
        Copies of ``x`` and ``y``.

    Raises:
        InputError: If a record number is outside the data set or given twice, or the mark does not fit.
    """
    records = [int(index)] if isinstance(index, int | np.integer) else [int(record) for record in index]
    for record in records:
        if not 0 <= record < len(x):
            raise InputError("index", f"record {record}", f"the data set has records 0 to {len(x) - 1}")
    if not records or len(set(records)) < len(records):
        raise InputError("index", f"{len(records)} records, {len(set(records))} different", "give different records")
    marked = x.clone()
    marked[records] = feature.apply(x[records])
    return marked, y.clone()


def _mirror_symmetric(h: int, w: int, feature: UniqueFeature, rng: np.random.Generator) -> np.ndarray:
    """A random left-right symmetric pattern with the mark's ink, all such patterns equally likely."""
    half, middle = w // 2, h * (w % 2)
    pairs = h * half
    ways = {
        single: math.comb(middle, single) * math.comb(pairs, (feature.ink - single) // 2)
        for single in range(middle + 1)
        if (feature.ink - single) % 2 == 0 and 0 <= (feature.ink - single) // 2 <= pairs
    }
    if not ways:
        raise InputError(
            "controls",
            f"no mirror-symmetric {h} x {w} pattern has {feature.ink} pixels",
            "take --control-kind permuted",
        )
    shares = np.array(list(ways.values()), dtype=np.float64)
    single = int(rng.choice(list(ways), p=shares / shares.sum()))
    left = rng.permutation(np.arange(pairs) < (feature.ink - single) // 2).reshape(h, half)
    centre = rng.permutation(np.arange(middle) < single).reshape(h, w % 2)
    return np.concatenate([left, centre, left[:, ::-1]], axis=1)[None].astype(np.float32)


def _equal(mark: np.ndarray, pattern: np.ndarray) -> bool:
    return bool((pattern == mark).all())


def _too_few(wanted: int, found: int, kind: str, feature: UniqueFeature) -> InputError:
    others = ", ".join(sorted(set(CONTROL_KINDS) - {kind}))
    return InputError(
        "controls",
        f"{wanted} marks, but only {found} of kind {kind!r} fit {feature.name!r}",
        f"ask for less, or {others}",
    )


def _check_unit(argument: str, values: Any) -> None:
    if not np.isfinite(values).all() or values.min() < 0 or values.max() > 1:
        raise InputError(argument, "values outside [0, 1]", "give 0 (black) to 1 (white)")
