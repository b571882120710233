"""What an evaluation concludes from the figures of its pairs."""

from types import SimpleNamespace

import numpy as np
import pytest

from fastmem.studies.trust.evaluate import _swap


def _metrics(auc: float, fpr: float) -> SimpleNamespace:
    rate = SimpleNamespace(value=fpr, low=fpr - 0.01, high=fpr + 0.01)
    return SimpleNamespace(auc=auc, auc_low=auc - 0.01, auc_high=auc + 0.01, fpr=rate)


def test_models_that_differ_by_more_than_their_records_do_not_make_a_change_of_places_matter() -> None:
    rng = np.random.default_rng(0)
    runs = [_metrics(auc, fpr) for auc, fpr in 0.6 + 0.05 * rng.standard_normal((40, 2))]
    found = _swap({"test": runs})["test"]  # type: ignore[arg-type]
    assert not all(found["auc"]["inside"]), "one pair alone is not told apart from a real change"
    for figure in ("auc", "fpr"):
        over = found[figure]["over_pairs"]
        assert over["n"] == 20
        assert over["value"] == pytest.approx(np.mean(found[figure]["differences"]))
        assert over["low"] < 0 < over["high"]


def test_a_change_that_every_pair_shows_is_found() -> None:
    runs = [_metrics(auc + 0.1 * (place % 2 == 0), 0.3) for place, auc in enumerate([0.6, 0.62, 0.58, 0.6, 0.61, 0.6])]
    found = _swap({"test": runs})["test"]  # type: ignore[arg-type]
    assert found["auc"]["over_pairs"]["low"] > 0


def test_one_pair_has_no_interval_over_pairs() -> None:
    over = _swap({"test": [_metrics(0.6, 0.1), _metrics(0.5, 0.1)]})["test"]["auc"]["over_pairs"]  # type: ignore[list-item]
    assert over["value"] == pytest.approx(0.1)
    assert np.isnan([over["low"], over["high"]]).all()
