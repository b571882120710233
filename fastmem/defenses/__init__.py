"""What makes a model's outputs tell less, or claim less: calibration of its confidence, before or after training.

A *defense* that acts on outputs maps logits to logits, so that every attack and metric reads both alike.
"""

from fastmem.defenses.ensemble import ensemble_logits
from fastmem.defenses.laplace import LastLayerLaplace, require_linear_output
from fastmem.defenses.recipes import decayed, smoothed
from fastmem.defenses.temperature import TemperatureScaling

__all__ = [
    "LastLayerLaplace",
    "TemperatureScaling",
    "decayed",
    "ensemble_logits",
    "require_linear_output",
    "smoothed",
]
