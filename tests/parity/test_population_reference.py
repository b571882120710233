"""Attack-P and Attack-R as the RMIA authors' scripts compute them (PMR; low = member there).

Both start from losses of the margin that TF Privacy computes in float32, which the fixture's statistic stands for.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from fastmem.attacks import AttackR, Population
from fastmem.signals import Signals

SHADOW = 32


@pytest.fixture(scope="module")
def signals(shared_reference: Path) -> Signals:
    with (
        np.load(shared_reference / "mia_inputs.npz") as inputs,
        np.load(shared_reference / "mia_statistics.npz") as statistics,
    ):
        return Signals(inputs["labels"], inputs["keep"], stats={"margin": statistics["tf_score_logit"][:, :, :1]})


@pytest.fixture(scope="module")
def expected(shared_reference: Path) -> dict[str, np.ndarray]:
    with np.load(shared_reference / "mia_rmia_base_pop_ref.npz") as file:
        return {name: file[name] for name in ("pmr_attack_r", "pmr_attack_p")}


@pytest.mark.parametrize("target", [0, 1, 2])
def test_attack_r(signals: Signals, expected: dict[str, np.ndarray], target: int) -> None:
    """One minus the source's position: end points 0 and 1000, 16 OUT losses between them."""
    found = AttackR()(signals.select_models([*range(SHADOW), SHADOW + target]), targets=[SHADOW])[0]
    np.testing.assert_allclose(1.0 - found, expected["pmr_attack_r"][target], rtol=0, atol=1e-10)


@pytest.mark.parametrize("target", [0, 1, 2])
def test_attack_p(signals: Signals, expected: dict[str, np.ndarray], target: int) -> None:
    """PMR takes for z the target's own non-members, which no attacker knows; given as population they agree.

    The source counts losses strictly smaller, fastmem those strictly larger: apart by the record itself where it is
    among z, and by ties, of which there are none.
    """
    model = SHADOW + target
    others = ~signals.keep[model]
    chosen = signals.select_models([model])
    never_seen = chosen.rows(others).with_keep(np.zeros((1, others.sum()), dtype=bool))
    found = Population()(chosen, population=never_seen)[0]
    smaller = 1.0 - found - others / others.sum()
    np.testing.assert_allclose(smaller, expected["pmr_attack_p"][target], rtol=0, atol=5e-8)
