"""Who trains on what: membership designs, and the split of a data set into three disjoint sets of records.

A design ``keep`` [M, N] says which of N pool records model m trains on. Sources: Carlini et al. 2022 (each record in
half of the models), Steinke et al. 2023 (independent inclusion).

The **pool** is what models train on and what is attacked. The **population** is seen by no model: attacks compare with
it (RMIA, Population). **Bystanders** train the control models, which never see the pool.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from fastmem.data.dataset import Dataset
from fastmem.errors import InputError, UnknownNameError

__all__ = [
    "DESIGNS",
    "Split",
    "bernoulli_design",
    "make_design",
    "paired_design",
    "rank_design",
    "split_around",
    "split_records",
    "split_sizes",
]

# A first audit should answer in minutes: more records only when they are asked for.
_LARGEST_DEFAULT_POOL = 10_000


def rank_design(num_models: int, num_samples: int, seed: int) -> np.ndarray:
    """Each record in exactly half of the models, chosen independently for each record.

    Equivalent to ranking uniform numbers of a record over the models and keeping the lower half. The size of a
    model's training set varies around ``num_samples / 2``.

    Args:
        num_models: M, even.
        num_samples: N.
        seed: Non-negative integer.

    Returns:
        bool [M, N]; each column has M / 2 True.

    Raises:
        InputError: If M is odd or a number is too small.
    """
    _check(num_models, num_samples, seed, even=True)
    # Records first, so that a record's shuffle runs over adjacent bytes.
    halves = np.tile(np.arange(num_models) < num_models // 2, (num_samples, 1))
    return np.ascontiguousarray(np.random.default_rng(seed).permuted(halves, axis=1, out=halves).T)


def paired_design(num_models: int, num_samples: int, seed: int) -> np.ndarray:
    """Model 2i trains on a random half, model 2i + 1 on its complement: both margins are exact.

    With odd N the two halves differ by one record, a coin deciding which is larger. A target's complement must not
    serve as its reference model.

    Args:
        num_models: M, even.
        num_samples: N.
        seed: Non-negative integer.

    Returns:
        bool [M, N]; each column has M / 2 True, each row N / 2 (rounded either way).

    Raises:
        InputError: If M is odd or a number is too small.
    """
    _check(num_models, num_samples, seed, even=True)
    rng = np.random.default_rng(seed)
    keep = np.zeros((num_models, num_samples), dtype=bool)
    for first in range(0, num_models, 2):
        half = (num_samples + int(rng.integers(2))) // 2
        keep[first, rng.permutation(num_samples)[:half]] = True
        keep[first + 1] = ~keep[first]
    return keep


def bernoulli_design(num_models: int, num_samples: int, seed: int) -> np.ndarray:
    """Each record in each model with probability 1/2, independently: for canary audits, whose theorem needs this.

    Args:
        num_models: M, any positive number.
        num_samples: N.
        seed: Non-negative integer.

    Returns:
        bool [M, N].

    Raises:
        InputError: If a number is too small.
    """
    _check(num_models, num_samples, seed, even=False)
    return np.random.default_rng(seed).random((num_models, num_samples)) < 0.5


DESIGNS: dict[str, Callable[[int, int, int], np.ndarray]] = {
    "rank": rank_design,
    "paired": paired_design,
    "bernoulli": bernoulli_design,
}


def make_design(kind: str, num_models: int, num_samples: int, seed: int) -> np.ndarray:
    """The design ``kind`` (a key of ``DESIGNS``): bool [num_models, num_samples]."""
    if kind not in DESIGNS:
        raise UnknownNameError("design", kind, DESIGNS)
    return DESIGNS[kind](num_models, num_samples, seed)


def _check(num_models: int, num_samples: int, seed: int, *, even: bool) -> None:
    if num_models < 1 or (even and (num_models < 2 or num_models % 2)):
        accepted = "an even number, so that each record is in half of the models" if even else "at least 1"
        raise InputError("num_models", f"{num_models}", f"give {accepted}")
    if num_samples < 2:
        raise InputError("num_samples", f"{num_samples}", "a design needs at least 2 records")
    if seed < 0:
        raise InputError("seed", f"{seed}", "give a non-negative integer")


@dataclass(frozen=True, eq=False)
class Split:
    """Three disjoint sets of records; ``population`` and ``bystanders`` are None where none were asked for.

    The index arrays (int64) name records of the data set; numbers from ``len(dataset)`` on are records of its test
    split, ``index - len(dataset)`` there.
    """

    pool: Dataset
    population: Dataset | None
    bystanders: Dataset | None
    pool_index: np.ndarray
    population_index: np.ndarray
    bystander_index: np.ndarray


def split_records(
    dataset: Dataset,
    pool: int | None = None,
    population: int | None = None,
    bystanders: int | None = None,
    seed: int = 0,
) -> Split:
    """Draw the three sets at random, without overlap.

    The pool comes from the training split; the others from what is left of it and, when that is used up, from the
    test split. Sizes left out are chosen: a pool of 4/7 of all records (rounded down to two digits, at most 10,000),
    half as many bystanders (what one model trains on), and a population of what remains, at most as large as the pool.
    scikit-learn's digits so give 1,000 + 500 + 297.

    Args:
        dataset: Where the records come from.
        pool: Records to train on and to attack, at least 2.
        population: Records that no model trains on; 0 for none.
        bystanders: Records for control models; 0 for none.
        seed: Non-negative integer.

    Raises:
        InputError: If the sizes do not fit the data set.
    """
    in_train, in_test = len(dataset), len(dataset.test) if dataset.test is not None else 0
    if seed < 0:
        raise InputError("seed", f"{seed}", "give a non-negative integer")
    pool, population, bystanders = split_sizes(dataset.name, in_train, in_test, pool, population, bystanders)
    rng = np.random.default_rng(seed)
    order = np.concatenate([rng.permutation(in_train), in_train + rng.permutation(in_test)])
    pool_index, rest = order[:pool], order[pool:]
    bystander_index, population_index = rest[:bystanders], rest[bystanders : bystanders + population]
    return Split(
        _take(dataset, pool_index, "pool"),
        _take(dataset, population_index, "population") if population else None,
        _take(dataset, bystander_index, "bystanders") if bystanders else None,
        pool_index,
        population_index,
        bystander_index,
    )


def split_around(
    dataset: Dataset,
    members: np.ndarray,
    pool: int | None = None,
    population: int | None = None,
    bystanders: int | None = None,
    seed: int = 0,
) -> Split:
    """Draw the three sets around a model that is there already: its members are in the pool or nowhere.

    The pool is half members and half non-members of the model, which trained on no record of the population or of the
    bystanders. Sizes left out are chosen: in the pool all members, but at most 5,000 and at most half as many as there
    are non-members; half of what remains, and at most half a pool, for the bystanders; and a population of the rest,
    at most as large as the pool.

    Args:
        dataset: Where the records come from; records of its test split count as non-members.
        members: Which of its training records the model trained on, bool [len(dataset)].
        pool: Records to attack, at least 2.
        population: Records that no model trains on; 0 for none.
        bystanders: Records for control models; 0 for none.
        seed: Non-negative integer.

    Raises:
        InputError: If there are too few members or non-members.
    """
    in_train, in_test = len(dataset), len(dataset.test) if dataset.test is not None else 0
    rng = np.random.default_rng(seed)
    inside, outside = rng.permutation(np.flatnonzero(members)), rng.permutation(np.flatnonzero(~members))
    outside = np.concatenate([outside, in_train + rng.permutation(in_test)])
    if pool is None:
        seen = unseen = min(len(inside), _LARGEST_DEFAULT_POOL // 2, len(outside) // 2)
    else:
        seen, unseen = pool - pool // 2, pool // 2
    if not (1 <= seen <= len(inside) and 1 <= unseen <= len(outside)):
        raise InputError(
            "members",
            f"{len(inside)} members and {len(outside)} others for a pool of {seen} and {unseen}",
            "half of the pool are members, half are not: give fewer --pool, or data that the model did not train on",
        )
    left = len(outside) - unseen
    if bystanders is None:
        bystanders = min((seen + unseen) // 2, left // 2 if population is None else max(left - population, 0))
    if population is None:
        population = min(seen + unseen, max(left - bystanders, 0))
    if min(population, bystanders) < 0 or population + bystanders > left:
        raise InputError(
            "population, bystanders",
            f"{population} + {bystanders} records beside a pool of {seen + unseen}",
            f"{left} records are left that the model did not train on; give less",
        )
    pool_index = rng.permutation(np.concatenate([inside[:seen], outside[:unseen]]))
    pool_index = pool_index[np.argsort(pool_index >= in_train, kind="stable")]  # the order in which records are taken
    rest = outside[unseen:]
    bystander_index, population_index = rest[:bystanders], rest[bystanders : bystanders + population]
    return Split(
        _take(dataset, pool_index, "pool"),
        _take(dataset, population_index, "population") if population else None,
        _take(dataset, bystander_index, "bystanders") if bystanders else None,
        pool_index,
        population_index,
        bystander_index,
    )


def split_sizes(
    name: str, in_train: int, in_test: int, pool: int | None, population: int | None, bystanders: int | None
) -> tuple[int, int, int]:
    """The sizes of pool, population and bystanders, those left out chosen as :func:`split_records` says.

    Raises:
        InputError: If they do not fit ``in_train`` records that may be trained on and ``in_test`` others.
    """
    for argument, size, least in (("pool", pool, 2), ("population", population, 0), ("bystanders", bystanders, 0)):
        if size is not None and size < least:
            raise InputError(argument, f"{size}", f"give at least {least} records")
    total = in_train + in_test
    if pool is None:
        pool = min(
            _two_digits((total - (population or 0) - (bystanders or 0)) * 4 // 7), in_train, _LARGEST_DEFAULT_POOL
        )
    if not 2 <= pool <= in_train:
        raise InputError("pool", f"{pool} records", f"{name} has {in_train} training records; a pool needs at least 2")
    left = total - pool
    if bystanders is None:
        share = left - population if population is not None else left * 2 // 3
        bystanders = min(pool // 2, max(share, 0))
    if population is None:
        population = min(pool, max(left - bystanders, 0))
    if population + bystanders > left:
        raise InputError(
            "population, bystanders",
            f"{population} + {bystanders} records beside a pool of {pool}",
            f"{name} has {total} records, {left} outside the pool; give less",
        )
    return pool, population, bystanders


def _two_digits(number: int) -> int:
    """``number`` with all but its two leading digits set to zero."""
    unit = 10 ** max(len(str(number)) - 2, 0)
    return number // unit * unit


def _take(dataset: Dataset, index: np.ndarray, part: str) -> Dataset:
    in_train = index[index < len(dataset)]
    in_test = index[index >= len(dataset)] - len(dataset)
    x, y = [dataset.x[in_train]], [dataset.y[in_train]]
    if dataset.test is not None and len(in_test):
        x.append(dataset.test.x[in_test])
        y.append(dataset.test.y[in_test])
    return Dataset(
        f"{dataset.name} ({part})", torch.cat(x), torch.cat(y), dataset.num_classes, None, dataset.class_names
    )
