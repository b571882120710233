"""The plan: disjoint records, sound designs, keys that hold everything, and every refusal before anything is trained."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fastmem.errors import InputError, UnknownNameError
from fastmem.studies.audit import AuditConfig
from fastmem.studies.audit.plan import AuditPlan, make_plan
from fastmem.training import Recipe

SmallAudit = Callable[..., AuditConfig]

_NETWORK = """
from torch import nn
class Net(nn.Sequential):
    def __init__(self, input_shape, num_classes):
        super().__init__(nn.Flatten(), nn.Linear(64, num_classes))
"""


def _model_keys(plan: AuditPlan) -> set[str]:
    return {key for cohort in plan.job.cohorts.values() for key in cohort.keys}


def _row_keys(plan: AuditPlan) -> set[str]:
    return {key for cohort in plan.job.cohorts.values() for table in cohort.tables for key in table.keys}


def test_null_models_never_see_the_pool(small_audit: SmallAudit) -> None:
    plan = make_plan(small_audit())
    split = plan.split
    parts = [split.pool_index, split.population_index, split.bystander_index]
    assert sum(map(len, parts)) == len(set(np.concatenate(parts)))
    null = plan.job.cohorts["null"]
    assert np.array_equal(null.x, split.bystanders.x.numpy())
    assert (null.train.sum(axis=1) == 40).all()
    # The mask that the attacks get is of the design, and has nothing to do with what these models trained on.
    assert (null.tables[0].keep.sum(axis=0) == 4).all()


def test_shadow_models_train_on_what_their_mask_says(small_audit: SmallAudit) -> None:
    shadow = make_plan(small_audit()).job.cohorts["shadow"]
    assert np.array_equal(shadow.train, shadow.tables[0].keep)
    assert (shadow.train.sum(axis=0) == 4).all()
    assert not shadow.tables[1].keep.any()


def test_keys_are_as_many_as_rows_and_do_not_change(small_audit: SmallAudit) -> None:
    plan = make_plan(small_audit())
    assert len(_model_keys(plan)) == 16
    assert len(_row_keys(plan)) == 32
    again = make_plan(small_audit())
    assert _model_keys(again) == _model_keys(plan)
    assert _row_keys(again) == _row_keys(plan)


@pytest.mark.parametrize(
    "change",
    [
        {"seed": 1},
        {"pool": 82},
        {"recipe": Recipe(epochs=5, learning_rate=0.01)},
        {"recipe": Recipe(epochs=5, batch_size=16)},
        {"recipe": Recipe(epochs=5, momentum=0.8)},
        {"recipe": Recipe(epochs=5, schedule="constant")},
        {"recipe": Recipe(epochs=5, label_smoothing=0.1)},
        {"recipe": Recipe(epochs=5, weight_decay=1e-4)},
        {"recipe": Recipe(epochs=5, augment="flip")},
        {"recipe": Recipe(epochs=5, patience=2)},
        {"recipe": Recipe(epochs=5, stop_at_train_accuracy=0.99)},
        {"model_args": {"hidden": [16, 16]}},
        {"model": "cnn", "model_args": {}},
    ],
    ids=str,
)
def test_what_decides_a_model_changes_its_key(small_audit: SmallAudit, change: dict[str, Any]) -> None:
    before, after = make_plan(small_audit()), make_plan(small_audit(**change))
    assert not _model_keys(before) & _model_keys(after)
    assert not _row_keys(before) & _row_keys(after)


@pytest.mark.parametrize("change", [{"queries": "flip"}, {"attacks": "loss,entropy"}, {"save_logits": True}], ids=str)
def test_what_decides_an_answer_changes_its_row_alone(small_audit: SmallAudit, change: dict[str, Any]) -> None:
    before, after = make_plan(small_audit()), make_plan(small_audit(**change))
    assert _model_keys(before) == _model_keys(after)
    assert not _row_keys(before) & _row_keys(after)


@pytest.mark.parametrize(
    "change", [{"workers": 2}, {"name": "other"}, {"out": Path("elsewhere")}, {"targets": 2}], ids=str
)
def test_what_decides_nothing_is_in_no_key(small_audit: SmallAudit, change: dict[str, Any]) -> None:
    assert _row_keys(make_plan(small_audit())) == _row_keys(make_plan(small_audit(**change)))


@pytest.mark.parametrize(
    "patch",
    [
        ("fastmem.studies.audit.cohorts.code_version", lambda *packages: "edited"),
        ("torch.__version__", "0.0.1"),
    ],
    ids=["code", "torch"],
)
def test_code_and_torch_are_in_the_keys(
    small_audit: SmallAudit, monkeypatch: pytest.MonkeyPatch, patch: tuple[str, object]
) -> None:
    before = make_plan(small_audit())
    monkeypatch.setattr(*patch)
    assert not _model_keys(before) & _model_keys(make_plan(small_audit()))


def test_the_implementation_that_reduces_logits_is_in_the_row(
    small_audit: SmallAudit, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = make_plan(small_audit())
    monkeypatch.setattr("fastmem.studies.audit.cohorts._statistics_backend", lambda job: "another")
    after = make_plan(small_audit())
    assert _model_keys(before) == _model_keys(after)
    assert not _row_keys(before) & _row_keys(after)


def test_the_source_of_a_users_model_is_in_its_key(
    small_audit: SmallAudit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    source = tmp_path / "plan_user_net.py"
    source.write_text(_NETWORK)
    config = small_audit(model="plan_user_net:Net", model_args={})
    before = make_plan(config)
    source.write_text(_NETWORK + "# edited\n")
    assert not _model_keys(before) & _model_keys(make_plan(config))
    sys.modules.pop("plan_user_net")


def test_the_default_network_is_small_where_the_inputs_are_few(small_audit: SmallAudit) -> None:
    assert make_plan(small_audit(model_args={})).config.model_args == {"hidden": [128]}


def test_few_models_in_a_task_where_models_are_large(small_audit: SmallAudit) -> None:
    assert make_plan(small_audit()).rows_per_task == 16
    assert make_plan(small_audit(model_args={"hidden": [4096, 4096]})).rows_per_task < 4
    assert make_plan(small_audit(model="cnn", model_args={})).rows_per_task == 1


def test_early_stopping_watches_bystanders_never_the_pool(small_audit: SmallAudit) -> None:
    plan = make_plan(small_audit(recipe=Recipe(epochs=5, patience=2)))
    shadow, null = plan.job.cohorts["shadow"], plan.job.cohorts["null"]
    assert np.array_equal(shadow.held_out[0], plan.split.bystanders.x.numpy())
    assert np.array_equal(null.held_out[0], plan.split.population.x.numpy())


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"data": "digts"}, UnknownNameError, "did you mean 'digits'"),
        ({"model": "mpl"}, UnknownNameError, "did you mean 'mlp'"),
        ({"attacks": "lira_onlin"}, UnknownNameError, "lira_online"),
        ({"attacks": ","}, InputError, "attacks: none given"),
        ({"queries": "flop"}, UnknownNameError, "did you mean 'flip'"),
        ({"pool": 5000}, InputError, "^pool: 5000"),
        ({"population": 1790}, InputError, "population"),
        ({"num_models": 2, "targets": None}, InputError, "^num_models: 2, but .* cannot work"),
        ({"null_models": 2}, InputError, "^null_models: 2, but .* cannot work"),
        ({"population": 0}, InputError, "^population: .*rmia_online"),
        ({"model_args": {"hiden": [3]}}, InputError, "hiden"),
        ({"recipe": Recipe(patience=2), "bystanders": 0}, InputError, "patience"),
        ({"data": "no_such_module:make"}, InputError, "no_such_module"),
        ({"model": "no_such_module:Net"}, InputError, "no_such_module"),
    ],
    ids=str,
)
def test_what_cannot_work_is_refused_before_training(
    small_audit: SmallAudit, change: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message) as caught:
        make_plan(small_audit(**{"null_models": 0 if "num_models" in change else 8, **change}))
    assert "\n" not in str(caught.value)
    assert not small_audit().run_dir.exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_cuda_where_there_is_none(small_audit: SmallAudit) -> None:
    with pytest.raises(InputError, match=r"^device: cuda, but torch finds no CUDA device"):
        make_plan(small_audit(device="cuda"))


def test_without_a_population_all_means_what_needs_none(small_audit: SmallAudit) -> None:
    plan = make_plan(small_audit(attacks="all", population=0, num_models=16, null_models=16))
    assert "rmia_online" not in plan.attacks
    assert "lira_online" in plan.attacks


def test_the_config_is_resolved_for_the_record(small_audit: SmallAudit) -> None:
    config = make_plan(dataclasses.replace(small_audit(), pool=None, population=None, bystanders=None)).config
    assert (config.pool, config.population, config.bystanders) == (1000, 297, 500)
