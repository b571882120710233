"""Did a model learn a mark that one training image, or few, carried? Black box: answers in, no weights, no gradients.

Source: Hartley and Tsaftaris 2022, arXiv:2202.08099 and 2205.10079. The auditor knows the mark, pastes it into images
that the models did not train on, and compares the answers with those to the clean image and to a random patch in the
same place. Higher score = memorised. The divergences run through :func:`fastmem.kl_div`, one clean answer to many marks.

A score alone means nothing: models that never saw the mark have one too. So every score comes with

- its rank p-value among ``null_models``, trained without the mark;
- its rank p-value among control marks, shown to the same model;
- where models and null models are seed-matched, the paired difference with its interval and p-values: the answer;
- the papers' own image-level tests under the name of what they are, a *sensitivity test*: they reject for most models
  that never saw the mark, and are shown so that nobody has to compute them to find that out.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastmem.data import UniqueFeature, random_patches
from fastmem.errors import FastmemError, InputError, UnknownNameError
from fastmem.metrics.m_score import LABEL_VARIANTS, VARIANTS, Answers, score_features
from fastmem.metrics.memorisation import (
    MemorisationTest,
    image_tests,
    memorisation_test,
    nulls_needed,
    rank_p_value,
)

__all__ = ["BlackBox", "SavedAnswers", "UniqueFeatureResult", "VariantResult", "ask", "unique_feature"]

BlackBox = Callable[[Tensor], Any]
"""Answers to a batch of images, as they are stored [B, C, H, W], as an array or tensor [B, classes]."""

_BATCH = 256


@dataclass(frozen=True, eq=False)
class SavedAnswers:
    """What a model answered, when it cannot be asked now.

    Args:
        clean: Answers to the images [N, C].
        feature: Answers to the images with the mark [N, C].
        contrast: Answers to the images with a random patch in its place [N, C].
        controls: Answers to the images with each control mark [G, N, C], or None.
    """

    clean: Any
    feature: Any
    contrast: Any
    controls: Any = None


@dataclass(frozen=True, eq=False)
class VariantResult:
    """One variant of the score over all models.

    Args:
        values: Scores of the models [M].
        null_values: Scores of the null models [P].
        rank_p: Each model's rank p-value among the null models [M].
        control_values: Scores of the control marks in each model [M, G].
        control_rank_p: Each model's rank p-value among control marks [M]; NaN without controls.
        sensitivity: p-values of the image-level tests [M] by name: no evidence of memorisation.
        null_sensitivity: The same for the null models [P].
        paired: The test over seed-matched pairs; None where models and null models are not paired.
    """

    values: np.ndarray
    null_values: np.ndarray
    rank_p: np.ndarray
    control_values: np.ndarray
    control_rank_p: np.ndarray
    sensitivity: dict[str, np.ndarray]
    null_sensitivity: dict[str, np.ndarray]
    paired: MemorisationTest | None


@dataclass(frozen=True, eq=False)
class UniqueFeatureResult:
    """The attack's result.

    Args:
        variants: By name (``fastmem.metrics.VARIANTS``).
        warnings: What to keep in mind.
    """

    variants: dict[str, VariantResult]
    warnings: tuple[str, ...] = ()

    def rows(self) -> list[dict[str, Any]]:
        """A row a model and variant, for a table or a data frame."""
        return [
            {
                "variant": name,
                "model": model,
                "value": float(value),
                "rank_p": float(result.rank_p[model]),
                "control_rank_p": float(result.control_rank_p[model]),
                **{f"sensitivity_{test}_p": float(p[model]) for test, p in result.sensitivity.items()},
            }
            for name, result in self.variants.items()
            for model, value in enumerate(result.values)
        ]


def unique_feature(
    models: BlackBox | SavedAnswers | Sequence[BlackBox | SavedAnswers],
    null_models: Sequence[BlackBox | SavedAnswers],
    images: Tensor | None,
    feature: UniqueFeature | None,
    *,
    controls: Sequence[UniqueFeature] = (),
    variants: Sequence[str] | None = None,
    label: int | None = None,
    labels: Any = None,
    paired: bool | None = None,
    from_logits: bool = False,
    clip: float | None = None,
    level: float | None = None,
    seed: int = 0,
) -> UniqueFeatureResult:
    """Scores a mark in models that may have learned it, beside models that cannot have.

    Args:
        models: Functions from images [B, C, H, W] to probabilities or logits [B, classes], or answers saved earlier.
            Whatever normalisation a model wants is the function's business: marks are pasted before it.
        null_models: The same of models trained without the mark, at best alike in all else.
        images: uint8 [N, C, H, W], or floating in [0, 1], that no model trained on; None where all answers are saved.
        feature: The mark; None where all answers are saved.
        controls: Marks that no model was trained on (:class:`fastmem.data.ControlFeatures`).
        variants: Of the score; by default all that can be had without, or with, the label.
        label: The canary's label, if known.
        labels: Labels of the images [N], to restrict label-known variants to images of the canary's label.
        paired: Whether null model i is model i's seed-matched partner; by default where there are equally many, more
            than one.
        from_logits: Whether answers are logits; else probabilities, whose rows sum to 1.
        clip: As :meth:`fastmem.metrics.Answers.of`.
        level: Refuse so few null models that no p-value could reach this level.
        seed: Of the random patches, the same for every model.

    Raises:
        InputError: If the mark does not fit the images, a model answers something else than [B, classes] or
            probabilities that do not sum to 1, a variant lacks its label, or the null models are too few.
    """
    asked = [models] if callable(models) or isinstance(models, SavedAnswers) else list(models)
    names = _variants(variants, label)
    if not asked or len(null_models) < 1:
        raise InputError("null_models", f"{len(asked)} models, {len(null_models)} null models", "give at least 1 each")
    if level is not None and len(null_models) < nulls_needed(level):
        raise InputError(
            "null_models",
            f"{len(null_models)}, so that no p-value can reach {level:g}",
            f"give at least {nulls_needed(level)}",
        )
    if paired and len(asked) != len(null_models):
        raise InputError("paired", f"{len(asked)} models, {len(null_models)} null models", "give one partner each")
    cautions = _cautions(asked, null_models)
    for caution in cautions:
        warnings.warn(caution, stacklevel=2)
    pairs = len(asked) == len(null_models) > 1 if paired is None else paired
    answers = [_answers(model, images, feature, controls, from_logits, clip, seed) for model in [*asked, *null_models]]
    results = {name: _result(name, answers, len(asked), label, labels, pairs) for name in names}
    return UniqueFeatureResult(results, tuple(cautions))


def ask(model: BlackBox, images: Tensor, argument: str = "models") -> np.ndarray:
    """A black box's answers to all images, batch by batch: float64 [N, classes].

    Raises:
        InputError: If it fails, or answers something else than [B, classes].
    """
    parts = []
    with torch.no_grad():
        for batch in images.split(_BATCH):
            try:
                answer = model(batch)
            except FastmemError:
                raise
            except Exception as error:  # a user's function may fail in any way
                reason = " ".join(f"{type(error).__name__}: {error}".split())
                raise InputError(argument, f"failed on a batch {list(batch.shape)} ({reason})", "mend it") from error
            array = answer.detach().cpu().numpy() if isinstance(answer, Tensor) else np.asarray(answer)
            if array.ndim != 2 or len(array) != len(batch) or array.dtype.kind not in "fiu":
                raise InputError(
                    argument,
                    f"answers a batch of {len(batch)} with {array.dtype} {list(array.shape)}",
                    "return [B, classes]",
                )
            parts.append(array.astype(np.float64))
    return np.concatenate(parts)


def _answers(
    model: BlackBox | SavedAnswers,
    images: Tensor | None,
    feature: UniqueFeature | None,
    controls: Sequence[UniqueFeature],
    from_logits: bool,
    clip: float | None,
    seed: int,
) -> Answers:
    if isinstance(model, SavedAnswers):
        first = np.asarray(model.feature, dtype=np.float64)[None]
        marked = first if model.controls is None else _joined(first, model.controls)
        return Answers.of(model.clean, marked, model.contrast, from_logits=from_logits, clip=clip)
    if images is None or feature is None:
        raise InputError("images, feature", "left out", "models that are functions need both")
    patched = feature.apply(images, random_patches(feature, len(images), seed))
    marked = np.stack([ask(model, mark.apply(images)) for mark in (feature, *controls)])
    return Answers.of(ask(model, images), marked, ask(model, patched), from_logits=from_logits, clip=clip)


def _joined(first: np.ndarray, controls: Any) -> np.ndarray:
    others = np.asarray(controls, dtype=np.float64)
    if others.ndim != 3 or others.shape[1:] != first.shape[1:]:
        raise InputError("controls", f"shape {list(others.shape)}", f"give [G, {', '.join(map(str, first.shape[1:]))}]")
    return np.concatenate([first, others])


def _variants(wanted: Sequence[str] | None, label: int | None) -> list[str]:
    if wanted is None:
        return [name for name in VARIANTS if label is not None or name not in LABEL_VARIANTS]
    for name in wanted:
        if name not in VARIANTS:
            raise UnknownNameError("variants", name, VARIANTS)
    return list(wanted)


def _cautions(models: Sequence[Any], nulls: Sequence[Any]) -> list[str]:
    found = []
    if len(nulls) < nulls_needed(0.05):
        found.append(f"{len(nulls)} null models: no rank p-value can reach 0.05, which takes {nulls_needed(0.05)}")
    if {id(model) for model in models} & {id(null) for null in nulls}:
        found.append("the same model is among the models and the null models")
    return found


def _result(
    name: str, answers: Sequence[Answers], num_models: int, label: int | None, labels: Any, paired: bool
) -> VariantResult:
    scores = [score_features(each, name, label, labels) for each in answers]
    values = np.array([score.value[0] for score in scores])
    observed, null = values[:num_models], values[num_models:]
    controls = [score.value[1:] for score in scores[:num_models]]
    tests = [image_tests(score.with_feature, score.without_feature) for score in scores]
    by_test = {test: np.array([each[test] for each in tests]) for test in tests[0]}
    return VariantResult(
        values=observed,
        null_values=null,
        rank_p=np.array([rank_p_value(value, null) for value in observed]),
        control_values=np.array(controls),
        control_rank_p=np.array(
            [rank_p_value(value, row) if len(row) else np.nan for value, row in zip(observed, controls, strict=True)]
        ),
        sensitivity={test: p[:num_models] for test, p in by_test.items()},
        null_sensitivity={test: p[num_models:] for test, p in by_test.items()},
        paired=memorisation_test(observed, null) if paired else None,
    )
