"""Where samples come from, how they are split, and how they become a network's input."""

from fastmem.data.arrays import from_arrays
from fastmem.data.dataset import Dataset
from fastmem.data.designs import (
    DESIGNS,
    Split,
    bernoulli_design,
    make_design,
    paired_design,
    rank_design,
    split_around,
    split_records,
)
from fastmem.data.evaluation import EvaluationImages, evaluation_images, fit_images
from fastmem.data.features import (
    CONTROL_KINDS,
    WRITE_MODES,
    ControlFeatures,
    UniqueFeature,
    insert_canary,
    load_feature,
    random_patches,
)
from fastmem.data.glyphs import GLYPH_NAMES, glyph
from fastmem.data.sources import DATASET_NAMES, load_dataset
from fastmem.data.transforms import AUGMENTATIONS, QUERY_KINDS, Augmentation, Query, make_queries, normalise

__all__ = [
    "AUGMENTATIONS",
    "CONTROL_KINDS",
    "DATASET_NAMES",
    "DESIGNS",
    "GLYPH_NAMES",
    "QUERY_KINDS",
    "WRITE_MODES",
    "Augmentation",
    "ControlFeatures",
    "Dataset",
    "EvaluationImages",
    "Query",
    "Split",
    "UniqueFeature",
    "bernoulli_design",
    "evaluation_images",
    "fit_images",
    "from_arrays",
    "glyph",
    "insert_canary",
    "load_dataset",
    "load_feature",
    "make_design",
    "make_queries",
    "normalise",
    "paired_design",
    "random_patches",
    "rank_design",
    "split_around",
    "split_records",
]
