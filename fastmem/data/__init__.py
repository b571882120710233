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
from fastmem.data.sources import DATASET_NAMES, load_dataset
from fastmem.data.transforms import AUGMENTATIONS, QUERY_KINDS, Augmentation, Query, make_queries, normalise

__all__ = [
    "AUGMENTATIONS",
    "DATASET_NAMES",
    "DESIGNS",
    "QUERY_KINDS",
    "Augmentation",
    "Dataset",
    "Query",
    "Split",
    "bernoulli_design",
    "from_arrays",
    "load_dataset",
    "make_design",
    "make_queries",
    "normalise",
    "paired_design",
    "rank_design",
    "split_around",
    "split_records",
]
