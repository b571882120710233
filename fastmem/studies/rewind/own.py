"""A model of the user's own: its weights, its initial weights, its members, and the records that are set aside."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fastmem.data import Dataset
from fastmem.errors import InputError, StoreError
from fastmem.models import build_model
from fastmem.studies.audit.target import read_target
from fastmem.studies.rewind.config import RewindConfig
from fastmem.studies.rewind.job import Given

__all__ = ["Own", "read_own", "split_own"]

_LARGEST_SIDE = 5000


@dataclass(frozen=True, eq=False)
class Own:
    """The user's model and the records around it.

    Args:
        given: The model, before and after training.
        members: Which records of the data set it was trained on, bool [len(dataset)].
        reference: Records that are the reference; None where they are drawn.
    """

    given: Given
    members: np.ndarray
    reference: np.ndarray | None


def read_own(config: RewindConfig, dataset: Dataset) -> Own | None:
    """Reads and checks what the config names; None where it names no checkpoint.

    Raises:
        InputError: A state does not fit the network, or the members or the reference do not fit the data.
        StoreError: A file is missing or damaged.
    """
    if config.checkpoint is None:
        return None
    assert config.members is not None, "checked by the config"
    network = build_model(
        config.model, dataset.input_shape, dataset.num_classes, config.initial_seed or 0, **config.model_args
    )
    first = {name: value.detach().clone() for name, value in network.state_dict().items()}
    target = read_target(config.checkpoint, config.members, len(dataset), network)
    source = f"seed {config.initial_seed}"
    if config.initial is not None:
        source = "file"
        try:
            first = read_target(config.initial, config.members, len(dataset), network).state
        except (InputError, StoreError) as error:
            raise type(error)("initial", error.problem, error.remedy) from error
    if all(torch.equal(first[name], value) for name, value in target.state.items()):
        raise InputError(
            "initial", "equals the checkpoint: rewinding would change nothing", "give the weights from before training"
        )
    rows = torch.from_numpy(np.flatnonzero(target.members))
    given = Given(_arrays(target.state), _arrays(first), source, dataset.x[rows].numpy(), dataset.y[rows].numpy())
    return Own(given, target.members, _reference(config.reference, target.members))


def split_own(own: Own, config: RewindConfig, dataset: Dataset) -> dict[str, np.ndarray]:
    """Record numbers of pool, reference, validation and test; from ``len(dataset)`` on those of the test split.

    The pool is half members and half others; the other three hold others only.

    Raises:
        InputError: There are too few of either.
    """
    rng = np.random.default_rng([config.seed, 31])
    inside = rng.permutation(np.flatnonzero(own.members))
    outside = rng.permutation(np.flatnonzero(~own.members))
    if own.reference is not None:
        outside = outside[~np.isin(outside, own.reference)]
    extra = 0 if dataset.test is None else len(dataset.test)
    outside = np.concatenate([outside, len(dataset) + rng.permutation(extra)])
    side = min(len(inside), len(outside) // 2, _LARGEST_SIDE) if config.pool is None else config.pool // 2
    left = len(outside) - side
    reference = 0 if own.reference is not None else (config.reference_size or min(1000, left // 3))
    validation = config.validation or min(1000, (left - reference) // 4)
    test = config.test or min(left - reference - validation, 2 * side)
    if min(side, validation, test) < 1 or side > len(inside) or reference + validation + test > left:
        raise InputError(
            "members",
            f"{len(inside)} members and {len(outside)} others for a pool of {side} each, {reference} reference, "
            f"{validation} validation and {test} test records",
            "give more records that the model was not trained on, or smaller sets",
        )
    ends = np.cumsum([side, reference, validation, test])
    others, drawn, watched, asked = np.split(outside[: ends[-1]], ends[:-1])
    return {
        "pool": rng.permutation(np.concatenate([inside[:side], others])),
        "reference": drawn if own.reference is None else own.reference,
        "validation": watched,
        "test": asked,
    }


def _arrays(state: dict[str, Tensor]) -> dict[str, np.ndarray]:
    return {name: value.detach().cpu().numpy().copy() for name, value in state.items()}


def _reference(path: str | None, members: np.ndarray) -> np.ndarray | None:
    if path is None:
        return None
    wanted = f"give bool [{len(members)}], or the numbers of records that the model was not trained on"
    if not Path(path).is_file():
        raise StoreError("reference", f"no file {path!r}", "check the path")
    try:
        rows = np.load(path, allow_pickle=False)
    except (ValueError, OSError, EOFError) as error:
        raise StoreError("reference", f"{path} is no .npy file of numbers ({error})", wanted) from error
    if not isinstance(rows, np.ndarray) or rows.ndim != 1 or rows.dtype.kind not in "biu":
        raise InputError("reference", f"{path} holds {getattr(rows, 'dtype', type(rows).__name__)}", wanted)
    if rows.dtype == bool:
        if len(rows) != len(members):
            raise InputError("reference", f"bool [{len(rows)}] in {path}", wanted)
        rows = np.flatnonzero(rows)
    if not len(rows) or rows.min() < 0 or rows.max() >= len(members):
        raise InputError("reference", f"{len(rows)} numbers in {path}, not all of the data set", wanted)
    rows = np.unique(rows.astype(np.int64))
    if shared := int(members[rows].sum()):
        raise InputError("reference", f"{shared} of {len(rows)} records are members", wanted)
    return rows
