"""ROC, AUC, rates at low FPR and Clopper-Pearson as other systems computed them.

Case names and sources are those of the README beside the arrays. SK = scikit-learn, PM = ML Privacy Meter, TF = TF
Privacy's LiRA script, JX = jax_privacy, SP = scipy.
"""

from pathlib import Path

import numpy as np
import pytest

from fastmem.metrics import audit_metrics, clopper_pearson, membership_metrics, roc
from fastmem.metrics.roc import Roc

CASES = ("lira", "rmia", "hinge_rounded", "constant", "rmia_pooled")


@pytest.fixture(scope="module")
def arrays(shared_reference: Path) -> dict[str, np.ndarray]:
    with np.load(shared_reference / "roc_metrics.npz") as file:
        return dict(file)


def curve(arrays: dict[str, np.ndarray], case: str) -> Roc:
    return roc(arrays[f"{case}_score"], arrays[f"{case}_member"])


@pytest.mark.parametrize("case", CASES)
def test_roc_points_sk(arrays: dict[str, np.ndarray], case: str) -> None:
    found = curve(arrays, case)
    np.testing.assert_allclose(found.fpr, arrays[f"{case}_sk_fpr_full"], rtol=0, atol=1e-12)
    np.testing.assert_allclose(found.tpr, arrays[f"{case}_sk_tpr_full"], rtol=0, atol=1e-12)
    np.testing.assert_array_equal(found.thresholds, arrays[f"{case}_sk_thr_full"])


@pytest.mark.parametrize("case", CASES)
def test_dropping_collinear_points_sk(arrays: dict[str, np.ndarray], case: str) -> None:
    found = curve(arrays, case)
    kept = np.searchsorted(-found.thresholds, -arrays[f"{case}_sk_thr"])
    np.testing.assert_allclose(found.fpr[kept], arrays[f"{case}_sk_fpr"], rtol=0, atol=1e-12)
    np.testing.assert_allclose(found.tpr[kept], arrays[f"{case}_sk_tpr"], rtol=0, atol=1e-12)


@pytest.mark.parametrize("case", CASES)
def test_auc_sk_pm_tf(arrays: dict[str, np.ndarray], case: str) -> None:
    found = membership_metrics(arrays[f"{case}_score"], arrays[f"{case}_member"])
    assert found.auc == pytest.approx(float(arrays[f"{case}_sk_auc"]), abs=1e-12)
    assert found.auc == pytest.approx(arrays[f"{case}_pm"][0], abs=1e-12)
    auc, accuracy = arrays[f"{case}_tf_sweep_auc_acc"]
    assert found.auc == pytest.approx(auc, abs=1e-12)
    assert found.balanced_accuracy == pytest.approx(accuracy, abs=1e-12)


@pytest.mark.parametrize("case", CASES)
def test_tpr_at_fpr_pm(arrays: dict[str, np.ndarray], case: str) -> None:
    # PM takes the last point with FPR <= level, as fastmem does, but of the curve without its collinear points, which
    # are rules too: at 1% on ``rmia`` a dropped point reaches TPR .026 where PM reports .020.
    levels = [0.01, 0.001, 0.0]
    found = membership_metrics(arrays[f"{case}_score"], arrays[f"{case}_member"], levels=levels)
    rates = np.array([found.tpr_at_fpr[level].tpr for level in levels])
    source = arrays[f"{case}_pm"][1:]
    fpr, tpr = arrays[f"{case}_sk_fpr"], arrays[f"{case}_sk_tpr"]
    np.testing.assert_allclose([tpr[fpr <= level][-1] for level in levels], source, rtol=0, atol=1e-12)
    assert (rates >= source - 1e-12).all()
    agree = np.abs(rates - source) <= 1e-12
    assert agree.all() or (case == "rmia" and agree.tolist() == [False, True, True])


@pytest.mark.parametrize("case", CASES)
def test_tpr_below_fpr_tf(arrays: dict[str, np.ndarray], case: str) -> None:
    # On purpose different: TF takes FPR < level. Its value is that of fastmem's curve under its own rule, and fastmem's
    # rate at the level can only be larger.
    found = curve(arrays, case)
    strictly_below = float(arrays[f"{case}_tf_tpr_lt_001"])
    assert found.tpr[found.fpr < 0.001][-1] == pytest.approx(strictly_below, abs=1e-12)
    assert found.tpr[found.at(0.001)] >= strictly_below - 1e-12


@pytest.mark.parametrize("case", CASES)
def test_convex_hull_jx(arrays: dict[str, np.ndarray], case: str) -> None:
    # On purpose different: JX reports the convex hull of the curve, which needs an attacker who tosses coins between
    # two thresholds. Hull values are never below fastmem's, and they are the hull of fastmem's own points.
    found = curve(arrays, case)
    assert float(arrays[f"{case}_jax_auroc"]) >= found.auc - 1e-12
    hull = _hull(found)
    assert np.trapezoid(hull[:, 1], hull[:, 0]) == pytest.approx(float(arrays[f"{case}_jax_auroc"]), abs=1e-12)
    on_hull = np.interp(arrays["fpr_levels"], hull[:, 0], hull[:, 1])
    np.testing.assert_allclose(on_hull, arrays[f"{case}_jax_tpr_at_fpr"], rtol=0, atol=1e-12)
    for level, hull_tpr in zip(arrays["fpr_levels"], arrays[f"{case}_jax_tpr_at_fpr"], strict=True):
        assert found.tpr[found.at(float(level))] <= hull_tpr + 1e-12


def test_pooled_over_targets(arrays: dict[str, np.ndarray]) -> None:
    scores = arrays["rmia_pooled_score"].reshape(8, 2000)
    members = arrays["rmia_pooled_member"].reshape(8, 2000)
    found = audit_metrics(scores, members)
    assert found.pooled.auc == pytest.approx(float(arrays["rmia_pooled_sk_auc"]), abs=1e-12)
    assert found.pooled.tpr_at_fpr[0.01].tpr == pytest.approx(arrays["rmia_pooled_pm"][1], abs=1e-12)
    assert found.per_target.auc[0] == pytest.approx(float(arrays["rmia_sk_auc"]), abs=1e-12)
    assert found.pooled.auc_low < found.pooled.auc < found.pooled.auc_high


def test_clopper_pearson_sp(arrays: dict[str, np.ndarray]) -> None:
    k, n = arrays["cp_k_n"].T
    low, high = clopper_pearson(k, n)
    np.testing.assert_allclose(np.stack([low, high], 1), arrays["cp_two_sided95"], rtol=0, atol=1e-12)


def test_one_sided_clopper_pearson_jx(arrays: dict[str, np.ndarray]) -> None:
    k, n = arrays["cp_k_n"].T
    np.testing.assert_allclose(clopper_pearson(k, n, 0.90)[1], arrays["cp_upper_one_sided95"], rtol=0, atol=1e-12)


def _hull(found: Roc) -> np.ndarray:
    """The upper convex hull of the curve's points, by a scan that drops every point below a chord."""
    hull: list[tuple[float, float]] = []
    for x, y in zip(found.fpr.tolist(), found.tpr.tolist(), strict=True):
        while hull and hull[-1][0] == x:
            hull.pop()
        while len(hull) > 1:
            (x0, y0), (x1, y1) = hull[-2:]
            if (x1 - x0) * (y - y0) < (y1 - y0) * (x - x0):
                break
            hull.pop()
        hull.append((x, y))
    return np.array(hull)
