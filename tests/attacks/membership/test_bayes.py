"""BASE against its formula."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from scipy.special import expit

from fastmem.attacks import BASE
from fastmem.errors import InputError
from fastmem.ops.leave_one_out import leave_one_out, reference_masks
from fastmem.signals import Signals

Tables = tuple[Signals, Signals]


@pytest.mark.parametrize(
    "attack", [BASE(), BASE(counts="all"), BASE("offline"), BASE("offline", scale=1, temperature=2)]
)
def test_formula(make_tables: Callable[..., Tables], attack: BASE) -> None:
    pool, _ = make_tables(8, 20, queries=2)
    p, keep = expit(pool.stat(f"margin@{attack.temperature}")), torch.from_numpy(pool.keep)
    expected = np.empty(pool.keep.shape)
    plan = leave_one_out(keep, None, attack.counts)
    for target, partner, rule in zip(*(part.tolist() for part in plan), strict=True):
        into, out = (mask.numpy() for mask in reference_masks(keep, target, partner, rule))
        for n in range(20):
            mean_in, mean_out = p[into[:, n], n].mean(axis=0), p[out[:, n], n].mean(axis=0)
            log_pbar = (
                np.log((mean_in + mean_out) / 2) if attack.variant == "online" else attack.scale * np.log(mean_out)
            )
            expected[target, n] = (np.log(p[target, n]) - log_pbar).mean()
    np.testing.assert_allclose(attack(pool), expected, rtol=1e-12, atol=1e-13)


def test_refused_options() -> None:
    with pytest.raises(InputError, match="scale: got -1; give a finite number above 0"):
        BASE("offline", scale=-1)
    with pytest.raises(InputError, match="variant: unknown name 'both'"):
        BASE("both")
