"""Statistics of the same logits as other systems computed them, each with its sign.

TF = TF Privacy, ET = the evaluation code of Aerni et al., PM = ML Privacy Meter, PMR = the RMIA authors' scripts.
Where one end of a statistic means member is that of ``fastmem.signals.names``: entropies and losses are low for
members in both systems, so no sign is turned here. Values to 1e-12 where the source computes in float64; 2e-7 where it
has float32 exponentials inside.
"""

from pathlib import Path

import numpy as np
import pytest

from fastmem.signals import Signals

EXACT, THROUGH_FLOAT32 = 1e-12, 2e-7


@pytest.fixture(scope="module")
def inputs(shared_reference: Path) -> dict[str, np.ndarray]:
    with np.load(shared_reference / "mia_inputs.npz") as file:
        return dict(file)


@pytest.fixture(scope="module")
def expected(shared_reference: Path) -> dict[str, np.ndarray]:
    with np.load(shared_reference / "mia_statistics.npz") as file:
        return dict(file)


@pytest.fixture(scope="module")
def signals(inputs: dict[str, np.ndarray]) -> Signals:
    return Signals(inputs["labels"], inputs["keep"], logits=inputs["logits"])


@pytest.fixture(scope="module")
def targets(inputs: dict[str, np.ndarray], signals: Signals) -> Signals:
    return signals.select_models(slice(int(inputs["n_shadow"]), None))


def close(found: np.ndarray, expected: np.ndarray, atol: float) -> None:
    """Equal to ``atol`` where ``expected`` may hold the first targets only."""
    np.testing.assert_allclose(found[: len(expected)], expected, rtol=0, atol=atol)


@pytest.mark.parametrize(
    ("stat", "source", "atol"),
    [
        ("margin", "ethz_logit", EXACT),
        ("margin", "tf_stat_logit", THROUGH_FLOAT32),
        ("hinge", "ethz_hinge", EXACT),
        ("hinge", "tf_stat_hinge", THROUGH_FLOAT32),
        ("loss", "tf_stat_xe", THROUGH_FLOAT32),
        ("entropy", "tf_entropy", EXACT),
        ("modified_entropy", "tf_modified_entropy", EXACT),
    ],
)
def test_statistic(targets: Signals, expected: dict[str, np.ndarray], stat: str, source: str, atol: float) -> None:
    close(targets.stat(stat), expected[source], atol)


def test_margin_of_every_model_tf(signals: Signals, expected: dict[str, np.ndarray]) -> None:
    close(signals.stat("margin"), expected["tf_score_logit"], THROUGH_FLOAT32)


def test_loss_pm(targets: Signals, expected: dict[str, np.ndarray]) -> None:
    close(targets.stat("loss")[:, :, 0], expected["pm_loss"], EXACT)


def test_true_class_probability_pm_tf(targets: Signals, expected: dict[str, np.ndarray]) -> None:
    probability = np.exp(targets.stat("true_log_prob"))
    close(probability[:, :, 0], expected["pm_softmax"], EXACT)
    close(probability, expected["tf_stat_conf_prob"], THROUGH_FLOAT32)


def test_temperature_two_pmr(targets: Signals, expected: dict[str, np.ndarray]) -> None:
    close(np.exp(targets.stat("true_log_prob@2"))[:, :, 0], expected["pm_softmax_T2"], EXACT)


def test_population_rows(inputs: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> None:
    z_logits = inputs["z_logits"]
    z = Signals(inputs["z_labels"], np.zeros(z_logits.shape[:2], dtype=bool), logits=z_logits)
    close(z.stat("margin"), expected["tf_score_logit_z"], THROUGH_FLOAT32)
    probability = np.exp(z.select_models(slice(int(inputs["n_shadow"]), None)).stat("true_log_prob"))
    close(probability[:, :, 0], expected["pm_softmax_z"], EXACT)


def test_raw_logit_is_left_out_on_purpose(
    inputs: dict[str, np.ndarray], targets: Signals, expected: dict[str, np.ndarray]
) -> None:
    # TF's ``conf_logit`` is the true class's raw logit. Adding a constant to all logits changes no answer of a model
    # but moves it, so fastmem has no such statistic; the margin stands still.
    raw = np.take_along_axis(inputs["logits"][-8:][:3], inputs["labels"][None, :, None, None], axis=3)[..., 0]
    close(raw, expected["tf_stat_conf_logit"], THROUGH_FLOAT32)
    moved = Signals(inputs["labels"], inputs["keep"][-8:], logits=inputs["logits"][-8:].astype(float) + 50.0)
    close(moved.stat("margin"), targets.stat("margin"), 1e-11)
