"""What makes a model's outputs tell less, or claim less: rewinding of critical weights, and calibration of confidence.

A *defense* that acts on outputs maps logits to logits, so that every attack and metric reads both alike.
"""

from fastmem.defenses.eligible import LAYER_KINDS, eligible_weights
from fastmem.defenses.ensemble import ensemble_logits
from fastmem.defenses.freezing import FrozenWeights
from fastmem.defenses.importance import SCORES, Records, Scoring, weight_scores
from fastmem.defenses.laplace import LastLayerLaplace, require_linear_output
from fastmem.defenses.losses import LOSSES, make_loss
from fastmem.defenses.private import Privacy, fine_tune_privately
from fastmem.defenses.recipes import decayed, smoothed
from fastmem.defenses.rewinding import VARIANTS, Rewound, reset_weights, rewind
from fastmem.defenses.temperature import TemperatureScaling
from fastmem.defenses.tuning import BATCH_NORM, fine_tune, recalibrate

__all__ = [
    "BATCH_NORM",
    "LAYER_KINDS",
    "LOSSES",
    "SCORES",
    "VARIANTS",
    "FrozenWeights",
    "LastLayerLaplace",
    "Privacy",
    "Records",
    "Rewound",
    "Scoring",
    "TemperatureScaling",
    "decayed",
    "eligible_weights",
    "ensemble_logits",
    "fine_tune",
    "fine_tune_privately",
    "make_loss",
    "recalibrate",
    "require_linear_output",
    "reset_weights",
    "rewind",
    "smoothed",
    "weight_scores",
]
