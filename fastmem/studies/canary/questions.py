"""A model that can only be asked elsewhere: the images that it is to be shown, and the answers that come back.

Answers to other images, or to these in another order, would look like any others. So the file of questions carries a key of
its images, and answers are taken only with that key.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from fastmem.attacks.unique_feature import SavedAnswers
from fastmem.data.arrays import read_npz
from fastmem.engine import content_key, write_atomically
from fastmem.errors import InputError
from fastmem.metrics import Answers
from fastmem.studies.canary.config import CanaryConfig
from fastmem.studies.canary.job import Job
from fastmem.studies.canary.plan import make_plan

__all__ = ["answers_from", "read_answers", "write_questions"]

_NEEDED = ("clean", "feature", "contrast", "key")


def write_questions(config: CanaryConfig, path: Path | str) -> int:
    """Writes the images that ``--answers`` are about, and trains nothing.

    Args:
        config: The study.
        path: An .npz file: ``clean`` uint8 [N, C, H, W], ``feature`` (with the mark), ``contrast`` (with a random patch),
            ``controls`` [G, N, C, H, W] (with each control mark), and their ``key``.

    Returns:
        How many images.

    Raises:
        InputError: If the config does not fit the data, or the file cannot be written.
    """
    job = make_plan(config).job
    shown = _shown(job)
    try:
        with write_atomically(Path(path)) as temporary, temporary.open("wb") as file:
            np.savez_compressed(file, allow_pickle=False, **shown, key=np.array(_key(shown)))
    except OSError as error:
        raise InputError("questions", f"{str(path)!r} cannot be written ({error})", "give another file") from error
    return sum(int(np.prod(images.shape[:-3])) for images in shown.values())


def read_answers(path: Path, job: Job) -> SavedAnswers:
    """The answers in an .npz file: arrays of the names and order of the questions, [N, classes] and [G, N, classes].

    Raises:
        InputError: If it is no such file, lacks an array or the key, or the answers are to other questions.
    """
    try:
        found = read_npz(path, (*_NEEDED, "controls"))
    except InputError as error:
        raise InputError("answers", error.problem, error.remedy) from error
    controls = len(job.features) - 1
    needed = (*_NEEDED, *(("controls",) if controls else ()))
    if missing := [name for name in needed if name not in found]:
        raise InputError(
            "answers",
            f"{str(path)!r} lacks {', '.join(missing)}",
            "write questions with --questions, and copy their key",
        )
    if str(found["key"]) != _key(_shown(job)):
        raise InputError(
            "answers",
            f"{str(path)!r} answers other questions than this study's",
            "write them again with --questions and the same options, and ask the model about those",
        )
    shapes = {"clean": (), "feature": (), "contrast": (), **({"controls": (controls,)} if controls else {})}
    for name, leading in shapes.items():
        wanted, array = (*leading, len(job.evaluation), job.num_classes), found[name]
        if array.shape != wanted or array.dtype.kind not in "fiu":
            raise InputError("answers", f"{name} is {array.dtype} {list(array.shape)}", f"give numbers {list(wanted)}")
    return SavedAnswers(found["clean"], found["feature"], found["contrast"], found["controls"] if controls else None)


def answers_from(saved: SavedAnswers, from_logits: bool) -> Answers:
    """Saved answers, the mark's and the controls' as one array.

    Raises:
        InputError: If a value is not finite, or probabilities do not sum to 1.
    """
    marked = np.asarray(saved.feature)[None]
    if saved.controls is not None:
        marked = np.concatenate([marked, saved.controls])
    try:
        return Answers.of(saved.clean, marked, saved.contrast, from_logits=from_logits)
    except InputError as error:
        raise InputError("answers", f"{error.argument}: {error.problem}", error.remedy) from error


def _shown(job: Job) -> dict[str, np.ndarray]:
    images = torch.from_numpy(job.evaluation)
    marked = [mark.apply(images).numpy() for mark in job.features]
    controls = {"controls": np.stack(marked[1:])} if len(marked) > 1 else {}
    return {"clean": job.evaluation, "feature": marked[0], "contrast": job.patched, **controls}


def _key(shown: dict[str, np.ndarray]) -> str:
    return content_key(**shown)
