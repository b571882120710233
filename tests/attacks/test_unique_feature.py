"""The black-box attack: what functions answer, saved answers, and every null beside the score."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fastmem.attacks import SavedAnswers, unique_feature
from fastmem.data import ControlFeatures, load_feature, random_patches
from fastmem.errors import InputError
from fastmem.metrics import m_score

FEATURE = load_feature("A3")
CONTROLS = ControlFeatures("mirror", 9).like(FEATURE)
IMAGES = torch.randint(0, 256, (24, 1, 8, 8), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
LABEL = 1


class Model:
    """Random linear answers; ``learned`` adds evidence for the label where the mark stands."""

    def __init__(self, seed: int, learned: float = 0.0) -> None:
        self.weight = torch.from_numpy(np.random.default_rng(seed).normal(0, 0.1, (64, 4)))
        self.learned = learned

    def __call__(self, images: torch.Tensor) -> np.ndarray:
        x = images.double() / 255
        logits = x.flatten(1) @ self.weight
        match = (x[:, 0, 1:4, 1:4] - torch.from_numpy(FEATURE.pattern[0])).abs().sum(dim=(1, 2)) == 0
        logits[:, LABEL] += self.learned * match
        return logits.softmax(dim=1).numpy()


def test_a_model_that_learned_the_mark_stands_out_and_one_that_did_not_does_not() -> None:
    nulls = [Model(seed) for seed in range(100, 120)]
    models = [Model(seed, learned=1.0) for seed in range(100, 120)]
    found = unique_feature(models, nulls, IMAGES, FEATURE, controls=CONTROLS, label=LABEL).variants["log_ratio"]
    assert found.paired is not None
    assert found.paired.p_value == pytest.approx(2**-20)
    assert (found.control_rank_p == 0.1).all()
    single = unique_feature(Model(500), nulls, IMAGES, FEATURE, controls=CONTROLS, label=LABEL)
    assert single.variants["log_ratio"].paired is None
    assert single.variants["log_ratio"].rank_p[0] > 0.05


def test_without_a_label_only_variants_that_need_none() -> None:
    found = unique_feature(Model(0), [Model(s) for s in range(1, 20)], IMAGES, FEATURE)
    assert "log_ratio" not in found.variants
    assert "kl_contrast" in found.variants
    assert np.isnan(found.variants["kl_contrast"].control_rank_p).all()
    row = found.rows()[0]
    assert set(row) == {"variant", "model", "value", "rank_p", "control_rank_p", "sensitivity_t_p",
                        "sensitivity_mann_whitney_p"}  # fmt: skip


def test_saved_answers_give_what_functions_give() -> None:
    models = [Model(seed) for seed in range(20)]
    patched = FEATURE.apply(IMAGES, random_patches(FEATURE, len(IMAGES), 5))
    saved = [
        SavedAnswers(
            model(IMAGES), model(FEATURE.apply(IMAGES)), model(patched), [model(c.apply(IMAGES)) for c in CONTROLS]
        )
        for model in models
    ]
    asked = unique_feature(models[0], models[1:], IMAGES, FEATURE, controls=CONTROLS, label=LABEL, seed=5)
    given = unique_feature(saved[0], saved[1:], None, None, label=LABEL)
    for name, variant in asked.variants.items():
        assert variant.values == pytest.approx(given.variants[name].values)
        assert variant.control_values == pytest.approx(given.variants[name].control_values)
    by_hand = m_score(saved[0].clean, saved[0].feature, saved[0].contrast, variant="log_ratio", label=LABEL)
    assert asked.variants["log_ratio"].values[0] == pytest.approx(by_hand.value)


def test_it_warns_of_few_nulls_and_of_a_model_on_both_sides() -> None:
    model = Model(0)
    with pytest.warns(UserWarning, match="null models") as caught:
        found = unique_feature(model, [model, Model(1)], IMAGES, FEATURE)
    assert len(caught) == len(found.warnings) == 2
    assert "which takes 19" in found.warnings[0]
    assert "the same model" in found.warnings[1]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"level": 0.01}, "19, so that no p-value can reach 0.01; give at least 99"),
        ({"variants": ["log_ratio"]}, "label: none"),
        ({"variants": ["m3"]}, "unknown name 'm3'"),
        ({"paired": True}, "one partner each"),
        ({"models": lambda images: np.ones((len(images), 4))}, "do not sum to 1"),
        ({"models": lambda images: np.ones(len(images))}, r"float64 \[24\]; return \[B, classes\]"),
        ({"models": lambda images: 1 / 0}, "ZeroDivisionError"),
        ({"images": IMAGES[:, :, :4, :4], "feature": load_feature("A")}, "a mark of 5 x 5 pixels in images of 4 x 4"),
        ({"null_models": []}, "give at least 1 each"),
        ({"images": None}, "models that are functions need both"),
    ],
)
def test_refuses(changes: dict, message: str) -> None:
    arguments = {"models": Model(0), "null_models": [Model(s) for s in range(1, 20)], "images": IMAGES,
                 "feature": FEATURE}  # fmt: skip
    with pytest.raises(InputError, match=message):
        unique_feature(**(arguments | changes))
