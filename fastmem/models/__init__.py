"""The networks of the papers and the field's standard ones, by name; a user's own by import path."""

from fastmem.models.registry import MODEL_NAMES, build_model, check_model, count_parameters

__all__ = ["MODEL_NAMES", "build_model", "check_model", "count_parameters"]
