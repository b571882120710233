"""What a canary study refuses at the door, and what it trains."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fastmem.errors import InputError
from fastmem.models import build_model
from fastmem.studies.canary.plan import make_plan
from fastmem.studies.canary.regularisers import REGULARISERS, training_of
from fastmem.training import Recipe


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"feature": "A", "offset": (4, 1)}, r"offset: a mark of 5 x 5 at row 4, column 1 of images of 8 x 8"),
        ({"feature": "A", "offset": (-1, 1)}, "offset"),
        ({"feature": "B9"}, "feature: unknown name 'B9'"),
        ({"feature": "missing.png"}, "feature: no file 'missing.png'"),
        ({"records": (80,)}, "records: 80; the pool has records 0 to 79"),
        ({"records": (-1,)}, "records: -1"),
        ({"records": (1, 1)}, "different"),
        ({"nulls": 6, "level": 0.05}, "nulls: 6, so that no p-value can reach the level 0.05; give at least 19"),
        ({"nulls": 50, "level": 0.01}, "give at least 99"),
        ({"copies": "1,zwei"}, "copies: '1,zwei'"),
        ({"copies": "0"}, "at least 1"),
        ({"copies": "200"}, "copies: 200 records of one class"),
        ({"regularise": "drop"}, "did you mean 'dropout'"),
        ({"regularise": "dropout", "model": "resnet18", "model_args": {}}, "resnet18 has no option dropout"),
        ({"regularise": "early-stopping", "validation": 0}, "validation: 0 records"),
        ({"held_out": 0, "validation": 0}, "held_out: 0 records"),
        ({"variants": "log-ratio"}, "did you mean 'log_ratio'"),
        ({"control_kind": "mirror", "controls": 50}, "controls: 50 marks, but only 9"),
        ({"evaluation": "nosuch"}, "unknown name 'nosuch'"),
        ({"images": 1}, "images: 1; give at least 2"),
        ({"level": 1.5}, "level"),
        ({"device": "tpu"}, "device"),
        ({"mode": "xor"}, "mode"),
        ({"checkpoint": Path("m.safetensors"), "label": 10}, "label: 10; .* has classes 0 to 9"),
        ({"checkpoint": Path("m.safetensors"), "variants": "log_ratio"}, "label: none, but log_ratio needs it"),
        ({"checkpoint": Path("m.safetensors"), "black_box": "a:b"}, "black_box: given beside a checkpoint"),
        ({"black_box": "a:b", "answers": Path("a.npz")}, "answers: given beside a black_box"),
    ],
)
def test_refuses(small_canary, change: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        make_plan(small_canary(**change))


def test_refuses_marks_that_do_not_fit(small_canary, tmp_path: Path) -> None:
    Image.fromarray(np.full((9, 9), 255, np.uint8)).save(tmp_path / "large.png")
    with pytest.raises(InputError, match="a mark of 9 x 9 pixels in images of 8 x 8"):
        make_plan(small_canary(feature=str(tmp_path / "large.png")))
    Image.fromarray(np.full((2, 2, 3), 255, np.uint8)).save(tmp_path / "colour.png")
    with pytest.raises(InputError, match="a mark of 3 channels for 1 of the image"):
        make_plan(small_canary(feature=str(tmp_path / "colour.png"), control_kind="permuted", controls=0))


def test_refuses_features_without_pixels(small_canary, tmp_path: Path) -> None:
    np.savez(tmp_path / "own.npz", x=np.random.default_rng(0).normal(size=(200, 5)), y=np.arange(200) % 4)
    with pytest.raises(InputError, match="give images"):
        make_plan(small_canary(data=str(tmp_path / "own.npz")))


def test_marked_copies_take_exactly_their_originals_places(small_canary) -> None:
    plan = make_plan(small_canary())
    job, cohort = plan.job, plan.job.cohorts["none"]
    nulls = [member for member in cohort.members if not member.copies]
    for member in cohort.members:
        records, null = job.records(member), nulls[member.pair]
        assert member.seed == null.seed
        assert np.array_equal(job.records(null), np.arange(80))
        changed = np.flatnonzero(records != np.arange(80))
        assert sorted(changed) == sorted(job.marks[member.canary, : member.copies])
        assert np.array_equal(job.y[records], job.y[:80])
        marks = job.x[records[changed]]
        assert np.array_equal(marks, plan.feature.apply(plan.split.pool.x[changed]).numpy())
    labels = job.y[job.marks]
    assert (labels == labels[:, :1]).all()


def test_every_variant_changes_one_thing_and_all_changes_all() -> None:
    recipe = Recipe(epochs=7)
    plain = training_of("none", "mlp", {}, recipe, (1, 8, 8), 10)
    assert plain.recipe == recipe
    changes = {}
    for name in REGULARISERS:
        training = training_of(name, "cnn", {}, recipe, (1, 8, 8), 10)
        build_model("cnn", (1, 8, 8), 10, 0, **training.model_args)
        recipe_changes = {k for k, v in vars(training.recipe).items() if v != vars(recipe)[k]}
        changes[name] = recipe_changes | set(training.model_args)
    assert [len(changes[name]) for name in REGULARISERS] == [0, 1, 1, 1, 1, 1, 5]
    assert changes["all"] == set().union(*(changes[name] for name in REGULARISERS if name != "all"))


def test_what_the_recipe_sets_is_kept() -> None:
    own = training_of("weight-decay", "mlp", {"hidden": [8]}, Recipe(weight_decay=0.3), (1, 8, 8), 10)
    assert own.recipe.weight_decay == 0.3
    assert training_of("dropout", "mlp", {"dropout": 0.1}, Recipe(), (1, 8, 8), 10).model_args == {"dropout": 0.1}
