"""What the models of each calibration say: float32 logits from the stored answers."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from fastmem.defenses import TemperatureScaling, ensemble_logits
from fastmem.signals import Signals
from fastmem.studies.trust.config import TrustConfig
from fastmem.studies.trust.job import LAPLACE, Job

__all__ = ["calibrated_logits", "probabilities"]


def calibrated_logits(job: Job, config: TrustConfig, calibration: str) -> tuple[np.ndarray, dict[str, Any]]:
    """Logits of all models under a calibration.

    Args:
        job: The job, all rows of which are there.
        config: The config, resolved.
        calibration: Its key.

    Returns:
        float32 [M, R, C], and what was fitted, for the summary.
    """
    if calibration in ("label_smoothing", "weight_decay", LAPLACE):
        return _stored(job, calibration), {}
    base = _stored(job, "none")
    if calibration == "temperature":
        return base / np.float32(config.temperature), {"temperatures": [config.temperature] * len(base)}
    if calibration == "temperature_fit":
        held_out = job.places["held_out"]
        fitted = [TemperatureScaling.fit(row[held_out], job.labels[held_out]).temperature for row in base]
        return base / np.array(fitted, np.float32)[:, None, None], {"temperatures": fitted}
    if calibration == "ensemble":
        members = [base, *(_stored(job, f"ensemble_{place}") for place in range(1, config.ensemble_size))]
        return ensemble_logits([torch.from_numpy(part) for part in members]).numpy(), {"members": len(members)}
    return base, {}


def probabilities(logits: np.ndarray) -> np.ndarray:
    """Softmax in float32, as the published attacks read it: a sure answer rounds to exactly 1."""
    return torch.softmax(torch.from_numpy(logits), dim=-1).numpy()


def _stored(job: Job, group: str) -> np.ndarray:
    logits = Signals.open(job.store, group).logits
    assert logits is not None, "rows of this study hold logits"
    return np.array(logits[:, :, 0], np.float32)
