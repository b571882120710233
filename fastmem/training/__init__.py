"""Recipes, training of one model or many, and checkpoints."""

from fastmem.training.checkpoint import load_checkpoint, load_into, save_checkpoint
from fastmem.training.job import DivergenceError, TrainedModel
from fastmem.training.recipe import Recipe
from fastmem.training.train import train_models

__all__ = [
    "DivergenceError",
    "Recipe",
    "TrainedModel",
    "load_checkpoint",
    "load_into",
    "save_checkpoint",
    "train_models",
]
