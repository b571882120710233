"""Who is asked about: the split of the records, and the sets of non-members by name."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fastmem.data import Dataset, fit_images, load_dataset
from fastmem.data.shifts import gaussian_noise, permute_pixels, photographs
from fastmem.errors import InputError, UnknownNameError
from fastmem.imports import is_import_path

__all__ = ["SET_NAMES", "Records", "TrustSplit", "fake_records", "make_sets", "resolve_names", "split_trust"]

#: The sets that need no other data, with what they are to a reader.
SET_NAMES = {
    "test": ("Test records", "in distribution"),
    "permuted": ("Permuted pixels", "far from the data"),
    "scaled": ("Scaled by 255", "preprocessing error"),
    "unnormalised": ("Not normalised", "preprocessing error"),
    "noise": ("Gaussian noise", "far from the data"),
    "photos": ("Photograph crops", "other natural images"),
    "fake": ("Generated images", "generated"),
}
_IMAGES_ONLY = ("photos", "fake")
_LARGEST_POOL = 25_000
_LARGEST_HELD_OUT = 10_000


@dataclass(frozen=True, eq=False)
class TrustSplit:
    """Three disjoint sets of records.

    Index arrays name records of the data set, numbers from ``len(dataset)`` on those of its test split.
    """

    pool: Dataset
    test: Dataset
    held_out: Dataset
    pool_index: np.ndarray
    test_index: np.ndarray


@dataclass(frozen=True, eq=False)
class Records:
    """Records that all models are asked about.

    Args:
        name: Of the set.
        title: For human readers.
        kind: What it is to the models: in distribution, a preprocessing error, ...
        x: As stored [N, ...].
        y: Labels [N]; None where they have none of their own.
        view: How they are shown (:func:`fastmem.data.shifts.network_inputs`).
        halves: Whether it is made of the test records, of which each model of a pair has a half of its own.
    """

    name: str
    title: str
    kind: str
    x: np.ndarray
    y: np.ndarray | None
    view: str = "normalised"
    halves: bool = False


def split_trust(
    dataset: Dataset, pool: int | None, test: int | None, held_out: int | None, attack_size: int, seed: int
) -> TrustSplit:
    """Draws pool, test and held-out records at random, the test records from the data's own test split if it has one.

    Sizes left out are chosen: a pool of 25,000 (as published) or 5/6 of a smaller training split; where there is no test
    split 45% of all records for the pool and a third for the test.

    Raises:
        InputError: If the sizes do not fit.
    """
    rng = np.random.default_rng([seed, 11])
    train = rng.permutation(len(dataset))
    if dataset.test is not None:
        other = len(dataset) + rng.permutation(len(dataset.test))
        pool = min(_LARGEST_POOL, _even(len(dataset) * 5 // 6)) if pool is None else pool
        test = min(_even(len(other)), 2 * attack_size) if test is None else test
        rest = train[pool:]
    else:
        pool = _even(len(dataset) * 45 // 100) if pool is None else pool
        test = min(_even(len(dataset) // 3), 2 * attack_size) if test is None else test
        other, rest = train[pool : pool + test], train[pool + test :]
    held_out = min(len(rest), _LARGEST_HELD_OUT) if held_out is None else held_out
    for name, given, there in (
        ("pool", pool, len(train)),
        ("test", test, len(other)),
        ("held_out", held_out, len(rest)),
    ):
        if given > there:
            raise InputError(name, f"{given} records", f"{dataset.name} has {there} left for it; give less")
    for name, given in (("pool", pool), ("test", test)):
        if given % 2 or given < 4:
            raise InputError(
                name, f"{given} records", "give an even number, at least 4: each model of a pair has a half"
            )
    if held_out < 2:
        raise InputError("held_out", f"{held_out} records", "give at least 2, with a smaller --pool or --test")
    index, test_index = train[:pool], other[:test]
    return TrustSplit(
        _take(dataset, index), _take(dataset, test_index), _take(dataset, rest[:held_out]), index, test_index
    )


def resolve_names(asked: Sequence[str], is_image: bool) -> tuple[str, ...]:
    """The sets to make, ``test`` first; ``all`` stands for those that need no other data and suit the records.

    Raises:
        InputError: If a set needs images and the records are none.
    """
    names = list(dict.fromkeys(("test", *asked)))
    if "all" in names:
        built_in = [name for name in SET_NAMES if is_image or name not in _IMAGES_ONLY]
        names = list(dict.fromkeys([*built_in, *(name for name in names if name != "all")]))
    for name in names:
        if not is_image and (name in _IMAGES_ONLY or name not in SET_NAMES):
            raise InputError("nonmembers", f"{name!r} for records that are no images", "leave it out")
    return tuple(names)


def make_sets(
    names: Sequence[str], split: TrustSplit, attack_size: int, seed: int, data_root: str | None
) -> list[Records]:
    """The sets but ``fake``, which must be generated first.

    Raises:
        InputError: If there is no set or data set of that name, or its samples cannot be made to fit.
    """
    test, (mean, std) = split.test, split.pool.channel_stats()
    own: dict[str, Callable[[], tuple[Tensor, Tensor | None, str]]] = {
        "test": lambda: (test.x, test.y, "normalised"),
        "permuted": lambda: (permute_pixels(test.x, seed + 1), None, "normalised"),
        "scaled": lambda: (test.x, test.y, "scaled"),
        "unnormalised": lambda: (test.x, test.y, "raw"),
        "noise": lambda: (gaussian_noise(attack_size, test.x, mean, std, seed + 2), None, "normalised"),
        "photos": lambda: (photographs(attack_size, test.input_shape, seed + 3), None, "normalised"),
    }
    sets = []
    for name in names:
        if name == "fake":
            continue
        if name in own:
            (x, y, view), (title, kind) = own[name](), SET_NAMES[name]
        else:
            x, y, view = _other_data(name, test.input_shape, attack_size, seed, data_root), None, "normalised"
            title, kind = name, "other natural images"
        halves = name in ("test", "permuted", "scaled", "unnormalised")
        sets.append(Records(name, title, kind, x.numpy(), None if y is None else y.numpy(), view, halves))
    return sets


def fake_records(images: Tensor) -> Records:
    """Generated images as a set."""
    title, kind = SET_NAMES["fake"]
    return Records("fake", title, kind, images.numpy(), None)


def _other_data(name: str, shape: tuple[int, ...], count: int, seed: int, data_root: str | None) -> Tensor:
    try:
        dataset = load_dataset(name, data_root)
    except UnknownNameError as error:
        if is_import_path(name):
            raise
        raise UnknownNameError("nonmembers", name, [*SET_NAMES, *error.valid, "all"]) from error
    except InputError as error:
        raise InputError("nonmembers", f"{name}: {error.problem}", error.remedy) from error
    if not dataset.is_image:
        raise InputError(
            "nonmembers", f"{name} has samples of shape {list(dataset.input_shape)}", f"give images for {list(shape)}"
        )
    rows = torch.from_numpy(np.random.default_rng([seed, 13]).permutation(len(dataset))[:count])
    return fit_images(dataset.x[rows], shape)


def _even(number: int) -> int:
    """``number`` with all but its two leading digits set to zero, made even."""
    unit = 10 ** max(len(str(number)) - 2, 0)
    return number // unit * unit // 2 * 2


def _take(dataset: Dataset, index: np.ndarray) -> Dataset:
    """Records of the training split, or of the test split by numbers from ``len(dataset)`` on; never both."""
    if dataset.test is not None and len(index) and index[0] >= len(dataset):
        return dataset.test.subset(index - len(dataset))
    return dataset.subset(index)
