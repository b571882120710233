"""LiRA and offsets as other systems computed them, from the same logits and masks.

TF = TF Privacy (research/mi_lira_2021; adv = advanced_mia.py), ET = misleading-privacy-evals, LP = LeakPro, SA = SACRO-ML,
PMR = the RMIA authors' scripts. TF and PMR start from their own float32 statistic, the others from exact margins. The
targets t stand outside the 32 shadow models, of which 16 trained on each record, so nothing is cut; ``loo`` arrays
take a shadow model for the target. Floors are off: public code adds 1e-30.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import scipy.stats

from fastmem.attacks import Calibrated, GlobalThreshold, LiRA
from fastmem.attacks.membership.base import Attack
from fastmem.signals import Signals

NO_FLOOR = 1e-30
SHADOW = 32


@pytest.fixture(scope="module")
def inputs(shared_reference: Path) -> dict[str, np.ndarray]:
    with np.load(shared_reference / "mia_inputs.npz") as file:
        return dict(file)


@pytest.fixture(scope="module")
def expected(shared_reference: Path) -> dict[str, np.ndarray]:
    with np.load(shared_reference / "mia_lira.npz") as file:
        return dict(file)


@pytest.fixture(scope="module")
def tf_signals(inputs: dict[str, np.ndarray], shared_reference: Path) -> Signals:
    """Signals of the statistic that TF computes."""
    with np.load(shared_reference / "mia_statistics.npz") as file:
        return Signals(inputs["labels"], inputs["keep"], stats={"margin": file["tf_score_logit"]})


@pytest.fixture(scope="module")
def signals(inputs: dict[str, np.ndarray]) -> Signals:
    """Signals of exact margins."""
    exact = Signals(inputs["labels"], inputs["keep"], logits=inputs["logits"])
    return Signals(inputs["labels"], inputs["keep"], stats={"margin": exact.stat("margin")})


def first_queries(signals: Signals, count: int) -> Signals:
    return Signals(signals.labels, signals.keep, stats={"margin": signals.stat("margin")[:, :, :count]})


def on_outside_targets(attack: Attack, signals: Signals, count: int) -> np.ndarray:
    """Scores [count, N]: each target against the shadow models alone."""
    rows = [
        attack(signals.select_models([*range(SHADOW), SHADOW + target]), targets=[SHADOW]) for target in range(count)
    ]
    return np.concatenate(rows)


def assert_close(found: np.ndarray, expected: np.ndarray, rtol: float = 1e-9) -> None:
    """Relative to the size of the score; where terms cancel, to that of scores around it."""
    assert found.shape == expected.shape
    np.testing.assert_allclose(found, expected, rtol=rtol, atol=rtol)


# --- TF Privacy: low = member in the source -----------------------------------------------------------------------------


@pytest.mark.parametrize("queries", [1, 2])
@pytest.mark.parametrize(
    ("attack", "source"),
    [
        (LiRA(floor=NO_FLOOR), "tf_online_perex"),
        (LiRA(fixed_variance="raw_in"), "tf_online_fixed"),
        (LiRA("offline_pdf", floor=NO_FLOOR), "tf_offline_pdf_perex"),
        (LiRA("offline_pdf", fixed_variance="raw"), "tf_offline_pdf_fixed"),
        (GlobalThreshold(), "tf_global"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_tf_lira(
    tf_signals: Signals, expected: dict[str, np.ndarray], attack: Attack, source: str, queries: int
) -> None:
    found = on_outside_targets(attack, first_queries(tf_signals, queries), 8)
    assert_close(found, -expected[f"{source}_A{queries}"])


@pytest.mark.parametrize("fixed", [False, True], ids=["perex", "fixed"])
@pytest.mark.parametrize("average", ["median", "mean"])
def test_tf_advanced_both(tf_signals: Signals, expected: dict[str, np.ndarray], average: str, fixed: bool) -> None:
    attack = LiRA(average=average, fixed_variance=fixed, floor=NO_FLOOR)
    source = f"adv_lira_both_{'fixed' if fixed else 'perex'}_{average}"
    assert_close(on_outside_targets(attack, tf_signals, 3), -expected[source])


@pytest.mark.parametrize("fixed", [False, True], ids=["perex", "fixed"])
def test_tf_advanced_out(tf_signals: Signals, expected: dict[str, np.ndarray], fixed: bool) -> None:
    attack = LiRA("offline_pdf", fixed_variance=fixed, floor=NO_FLOOR)
    source = f"adv_lira_out_{'fixed' if fixed else 'perex'}_median"
    assert_close(on_outside_targets(attack, tf_signals, 3), -expected[source])


@pytest.mark.parametrize("fixed", [False, True], ids=["perex", "fixed"])
def test_tf_advanced_in_is_the_difference(tf_signals: Signals, expected: dict[str, np.ndarray], fixed: bool) -> None:
    # The score by IN models alone, log N(s; in), is no attack of fastmem; it is online minus offline.
    name = "fixed" if fixed else "perex"
    online = on_outside_targets(LiRA(fixed_variance=fixed, floor=NO_FLOOR), tf_signals, 3)
    offline = on_outside_targets(LiRA("offline_pdf", fixed_variance=fixed, floor=NO_FLOOR), tf_signals, 3)
    assert_close(online - offline, -expected[f"adv_lira_in_{name}_median"])


@pytest.mark.parametrize("fixed", [False, True], ids=["perex", "fixed"])
@pytest.mark.parametrize("target", [0, 1])
def test_tf_advanced_leave_one_out(
    tf_signals: Signals, expected: dict[str, np.ndarray], target: int, fixed: bool
) -> None:
    attack = LiRA(fixed_variance=fixed, counts="all", floor=NO_FLOOR)
    found = attack(tf_signals.select_models(range(SHADOW)), targets=[target])[0]
    assert_close(found, -expected[f"adv_loo{target}_lira_both_{'fixed' if fixed else 'perex'}_median"])


@pytest.mark.parametrize("target", [0, 1])
@pytest.mark.parametrize("variant", ["online", "offline_pdf"])
@pytest.mark.parametrize("fixed", [False, True], ids=["perex", "fixed"])
def test_tf_leave_one_out_cuts_other_models(
    tf_signals: Signals, expected: dict[str, np.ndarray], target: int, variant: str, fixed: bool
) -> None:
    """Equal counts in both, 15 and 15, but not of the same models: TF keeps the first ones.

    In this paired design fastmem leaves out the target's complement, which in TF is cut only where it comes last. So
    scores differ by one model of 15; they must rank alike and lie around each other.
    """
    rest = tf_signals.select_models(range(SHADOW))
    variance = ("raw_in" if variant == "online" else "raw") if fixed else False
    attack = LiRA(variant, fixed_variance=variance, floor=NO_FLOOR)
    found = attack(rest, targets=[target])[0]
    source = -expected[f"tf_loo{target}_{variant}_{'fixed' if fixed else 'perex'}"]
    assert scipy.stats.spearmanr(found, source).statistic > 0.97
    assert abs(np.median(found - source)) < 0.02
    assert np.abs(found - source).max() > 0.1

    # With TF's choice of models the values are TF's: the first 15 of each kind, as an outside target's references.
    others = [model for model in range(SHADOW) if model != target]
    keep, margin = rest.keep[others], rest.stat("margin")[others]
    order = np.concatenate(
        [np.argsort(~keep, axis=0, kind="stable")[:15], np.argsort(keep, axis=0, kind="stable")[:15]]
    )
    chosen = np.take_along_axis(margin, order[:, :, None], axis=0)
    in_and_out = np.repeat([True, False], 15)[:, None].repeat(keep.shape[1], axis=1)
    cut = Signals(
        rest.labels,
        np.concatenate([in_and_out, rest.keep[[target]]]),
        stats={"margin": np.concatenate([chosen, rest.stat("margin")[[target]]])},
    )
    assert_close(attack(cut, targets=[30])[0], source)


@pytest.mark.parametrize("average", ["median", "mean"])
def test_tf_offset_out(tf_signals: Signals, expected: dict[str, np.ndarray], average: str) -> None:
    attack = Calibrated(on="margin", average=average)
    assert_close(on_outside_targets(attack, tf_signals, 3), expected[f"adv_offset_out_{average}"])


def test_tf_offset_both(tf_signals: Signals, expected: dict[str, np.ndarray]) -> None:
    attack = Calibrated(on="margin", reference="both", average="median")
    both, out = expected["adv_offset_both_median"], expected["adv_offset_out_median"]
    assert_close(on_outside_targets(attack, tf_signals, 3), both)
    # The offset from IN alone follows from the two.
    found = 2 * on_outside_targets(attack, tf_signals, 3) - out
    assert_close(found, expected["adv_offset_in_median"])


@pytest.mark.parametrize("reference", ["out", "both"])
def test_tf_calibrated_loss(tf_signals: Signals, expected: dict[str, np.ndarray], reference: str) -> None:
    found = on_outside_targets(Calibrated(reference=reference), tf_signals, 3)
    # Their loss is that of softmax probabilities in float32, ours that of their margin: the bound of mia_statistics.
    np.testing.assert_allclose(found, expected[f"adv_offset_{reference}_mean_negxe"], rtol=0, atol=2e-7)


# --- misleading-privacy-evals: high = member ----------------------------------------------------------------------------


def test_et_online(signals: Signals, expected: dict[str, np.ndarray]) -> None:
    attack = LiRA(average="mean", ddof=1, floor=NO_FLOOR)
    assert_close(on_outside_targets(attack, signals, 3), expected["ethz_online_perex"])


@pytest.mark.parametrize(("name", "fixed"), [("perex", False), ("global", "raw")])
def test_et_leave_one_out(signals: Signals, expected: dict[str, np.ndarray], name: str, fixed: bool | str) -> None:
    attack = LiRA(average="mean", ddof=1, counts="all", fixed_variance=fixed, floor=NO_FLOOR)
    some = signals.select_models(range(SHADOW)).rows(range(int(expected["ethz_loo_n"])))
    assert_close(attack(some), expected[f"ethz_loo_{name}"])


# --- LeakPro and SACRO-ML: query 0, means, high = member ----------------------------------------------------------------


@pytest.mark.parametrize(
    ("attack", "source"),
    [
        # What LeakPro calls "fixed" is a spread per record, and its "carlini" is the raw spread below 64 models.
        (LiRA(average="mean", floor=NO_FLOOR), "lp_online_opt_fixed"),
        (LiRA("offline_cdf", average="mean", floor=NO_FLOOR), "lp_offline_cdf_opt_fixed"),
        (LiRA(average="mean", fixed_variance="raw"), "lp_online_opt_carlini"),
        (LiRA("offline_cdf", average="mean", fixed_variance="raw"), "lp_offline_cdf_opt_carlini"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_lp(signals: Signals, expected: dict[str, np.ndarray], attack: Attack, source: str) -> None:
    assert_close(on_outside_targets(attack, first_queries(signals, 1), 3), expected[source])


@pytest.mark.parametrize("fixed", [False, "raw"], ids=["perex", "fixed"])
@pytest.mark.parametrize("variant", ["online", "offline_pdf"])
def test_sa(signals: Signals, expected: dict[str, np.ndarray], variant: str, fixed: bool | str) -> None:
    attack = LiRA(variant, average="mean", fixed_variance=fixed, floor=NO_FLOOR)
    mode = {"online": "online_carlini", "offline_pdf": "offline_carlini"}[variant]
    source = expected[f"sacro_{mode}_{'fixed' if fixed else 'perex'}"]
    # SACRO goes through probabilities, which costs digits.
    assert_close(on_outside_targets(attack, first_queries(signals, 1), 3), source, rtol=1e-8)


@pytest.mark.parametrize("fixed", [False, "raw"], ids=["perex", "fixed"])
def test_sa_offline_is_the_exponential(signals: Signals, expected: dict[str, np.ndarray], fixed: bool | str) -> None:
    """SACRO gives the probability itself, which is 1 for all beyond 8.3 sigma; fastmem its logarithm."""
    attack = LiRA("offline_cdf", average="mean", fixed_variance=fixed, floor=NO_FLOOR)
    found = on_outside_targets(attack, first_queries(signals, 1), 3)
    source = expected[f"sacro_offline_{'fixed' if fixed else 'perex'}"]
    np.testing.assert_allclose(np.exp(found), source, rtol=1e-8, atol=1e-12)
    assert len(np.unique(found)) >= len(np.unique(source))


# --- the RMIA authors' LiRA ---------------------------------------------------------------------------------------------


def test_pmr_offline(tf_signals: Signals, shared_reference: Path) -> None:
    with np.load(shared_reference / "mia_rmia_base_pop_ref.npz") as file:
        source = file["pmr_lira_offline_A2"]
    assert_close(on_outside_targets(LiRA("offline_pdf", floor=NO_FLOOR), tf_signals, 3), -source)
