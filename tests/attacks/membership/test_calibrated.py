"""Difficulty calibration against its formula."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch

from fastmem.attacks import Calibrated
from fastmem.errors import InputError
from fastmem.metrics import roc
from fastmem.ops.leave_one_out import leave_one_out, reference_masks
from fastmem.signals import Signals

Tables = tuple[Signals, Signals]


@pytest.mark.parametrize("counts", ["equal", "all"])
@pytest.mark.parametrize("average", ["mean", "median"])
@pytest.mark.parametrize("reference", ["out", "both"])
@pytest.mark.parametrize("on", ["loss", "margin"])
def test_formula(make_tables: Callable[..., Tables], on: str, reference: str, average: str, counts: str) -> None:
    pool, _ = make_tables(8, 20, queries=2)
    values, keep = pool.stat(on), torch.from_numpy(pool.keep)
    of = {"mean": np.mean, "median": np.median}[average]
    expected = np.empty(pool.keep.shape)
    for target, partner, rule in zip(*(part.tolist() for part in leave_one_out(keep, None, counts)), strict=True):
        into, out = (mask.numpy() for mask in reference_masks(keep, target, partner, rule))
        for n in range(20):
            base = of(values[out[:, n], n], axis=0)
            if reference == "both":
                base = (base + of(values[into[:, n], n], axis=0)) / 2
            expected[target, n] = (values[target, n] - base).mean()
    sign = -1 if on == "loss" else 1
    attack = Calibrated(on, reference, average, counts)
    np.testing.assert_allclose(attack(pool), sign * expected, rtol=1e-12, atol=1e-13)


def test_it_needs_in_models_only_for_both(make_tables: Callable[..., Tables]) -> None:
    pool, _ = make_tables(8, 20)
    keep = np.zeros_like(pool.keep)
    keep[7, ::2] = True
    outside = pool.with_keep(keep)
    assert np.isfinite(Calibrated()(outside, [7])).all()
    with pytest.raises(InputError, match=r"0 IN and 7 OUT reference models .* calibrated needs 1 IN and 1 OUT"):
        Calibrated(reference="both")(outside, [7])


def test_calibration_helps_where_records_differ_in_hardness(make_tables: Callable[..., Tables]) -> None:
    pool, _ = make_tables(16, 1000, effect=1.0)
    plain = [roc(-loss, members).auc for loss, members in zip(pool.stat("loss")[..., 0], pool.keep, strict=True)]
    calibrated = [roc(scores, members).auc for scores, members in zip(Calibrated()(pool), pool.keep, strict=True)]
    assert np.mean(calibrated) > np.mean(plain) + 0.02


def test_refused_options() -> None:
    with pytest.raises(InputError, match="on: unknown name 'los'; did you mean 'loss'"):
        Calibrated(on="los")
    with pytest.raises(InputError, match="reference: unknown name 'in'"):
        Calibrated(reference="in")
