"""A model of the user's own as the target: its weights, and which records it was trained on.

The shadow models are its references, all of them. In their design each record is in exactly half of them, whether the
target trained on it or not, so that the number of references tells nothing of its membership and none is left out.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fastmem.errors import InputError, StoreError
from fastmem.studies.audit.saved import digest_of
from fastmem.training import load_checkpoint, load_into

__all__ = ["Target", "read_target", "target_warnings"]

# A target this many standard deviations away from the shadow models was not trained as they were.
_UNLIKE = 4.0
_SMALLEST_SPREAD = 0.01
# Right answers beyond chance on its own records, as a share of the shadow models'.
_LITTLE = 0.2

# What training scripts call the state dict within a larger file, and what wrappers put before each name.
_NESTED = ("state_dict", "model_state_dict", "model", "net")
_PREFIXES = ("module.", "_orig_mod.")


@dataclass(frozen=True, eq=False)
class Target:
    """The model under audit.

    Args:
        path: Where it was read from.
        state: Its tensors by name, as the network has them.
        members: Which records of the data set it was trained on, bool [len(dataset)].
        sha256: Hash of the tensors.
    """

    path: str
    state: dict[str, Tensor]
    members: np.ndarray
    sha256: str


def read_target(checkpoint: str, members: str, num_records: int, network: nn.Module) -> Target:
    """Reads the model and its members, and checks both.

    Args:
        checkpoint: A safetensors file, or a state dict that ``torch.load(weights_only=True)`` reads.
        members: A ``.npy`` file: bool [num_records], or integers.
        num_records: Records of the data set's training split.
        network: A network of the kind that the model should be.

    Raises:
        InputError: If the model is not of that kind or holds values that are not finite, or the members do not fit.
        StoreError: If a file is missing or damaged.
    """
    state = _read_state(Path(checkpoint))
    load_into(network, state, "checkpoint")
    # In the network's own dtypes, which is how it will be asked.
    state = {name: value.detach().clone() for name, value in network.state_dict().items()}
    for name, value in state.items():
        if value.is_floating_point() and not value.isfinite().all():
            raise InputError("checkpoint", f"NaN or infinite values in {name}", "give a model that works")
    return Target(str(checkpoint), state, _read_members(Path(members), num_records), digest_of(state))


def target_warnings(
    target: Mapping[str, float], shadows: Mapping[str, Mapping[str, float]], num_classes: int
) -> list[str]:
    """What speaks against the shadow models as references of the target.

    Args:
        target: Its ``train_accuracy`` and ``test_accuracy``.
        shadows: For each of these the ``mean`` and ``std`` of the shadow models.
        num_classes: C.
    """
    learned, usual = (
        value - 1 / num_classes for value in (target["train_accuracy"], shadows["train_accuracy"]["mean"])
    )
    if learned < _LITTLE * usual:
        return [
            f"the checkpoint is right on {target['train_accuracy']:.1%} of the records that it was trained on, hardly "
            "more than by chance: its inputs were normalised otherwise (--input-mean, --input-std), its classes are in "
            "another order, or --members names other records; do not trust this audit"
        ]
    warnings = []
    for name, what in (("train_accuracy", "its training records"), ("test_accuracy", "other records")):
        mean, std = shadows[name]["mean"], shadows[name]["std"]
        if abs(target[name] - mean) > _UNLIKE * max(std, _SMALLEST_SPREAD):
            warnings.append(
                f"the checkpoint is right on {target[name]:.1%} of {what}, the shadow models on {mean:.1%} (standard "
                f"deviation {std:.1%}): the recipe is not the one that it was trained by, so attacks with references "
                "may miss what they would find, or find what is not there"
            )
    return warnings


def _read_state(path: Path) -> dict[str, Tensor]:
    if path.suffix == ".safetensors":
        state, _ = load_checkpoint(path)
    else:
        if not path.is_file():
            raise StoreError("checkpoint", f"no file {str(path)!r}", "check the path")
        try:
            state = torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:  # a foreign file may fail in any way
            reason = str(error).strip().splitlines() or [type(error).__name__]
            raise InputError(
                "checkpoint",
                f"{path} holds more than tensors, or is no file of torch.save ({reason[0][:120]})",
                "save the weights alone: torch.save(model.state_dict(), FILE), or as safetensors",
            ) from None
    state = _unwrapped(state)
    if not state or not all(isinstance(name, str) and isinstance(value, Tensor) for name, value in state.items()):
        raise InputError("checkpoint", f"{path} holds no state dict", "save model.state_dict()")
    return dict(state)


def _unwrapped(state: Any) -> Mapping[Any, Any]:
    """The state dict within a larger one, without what data parallelism or compilation put before its names."""
    if not isinstance(state, Mapping):
        return {}
    if not any(isinstance(value, Tensor) for value in state.values()):
        state = next((state[name] for name in _NESTED if isinstance(state.get(name), Mapping)), state)
    for prefix in _PREFIXES:
        if state and all(isinstance(name, str) and name.startswith(prefix) for name in state):
            state = {name.removeprefix(prefix): value for name, value in state.items()}
    return state


def _read_members(path: Path, num_records: int) -> np.ndarray:
    wanted = f"give bool [{num_records}], a value a record of the data set, or the numbers of the records trained on"
    try:
        given = np.load(path, allow_pickle=False)
    except FileNotFoundError:
        raise StoreError("members", f"no file {str(path)!r}", "check the path") from None
    except (ValueError, OSError, EOFError) as error:
        raise StoreError("members", f"{path} is no .npy file of numbers ({error})", wanted) from error
    if not isinstance(given, np.ndarray) or given.ndim != 1:
        raise InputError("members", f"{path} holds {getattr(given, 'shape', type(given).__name__)}", wanted)
    if given.dtype == bool and len(given) == num_records:
        members = given
    elif given.dtype.kind in "iu" and len(given) and given.min() >= 0 and given.max() < num_records:
        members = np.zeros(num_records, dtype=bool)
        members[given] = True
        if members.sum() < len(given):
            raise InputError("members", f"{len(given) - members.sum()} records are named twice in {path}", wanted)
    else:
        raise InputError("members", f"{given.dtype} [{len(given)}] in {path}", wanted)
    if members.all() or not members.any():
        raise InputError(
            "members", f"{int(members.sum())} of {num_records} records", "an audit needs members and others to compare"
        )
    return members
