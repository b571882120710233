"""What a network computes on the way to its answer: the output of any of its layers, by name, as rows of features."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from fastmem.data.transforms import normalise
from fastmem.errors import InputError, UnknownNameError

__all__ = ["LayerReader", "layer_names", "record_features"]

_BATCH = 256


def layer_names(model: nn.Module) -> list[str]:
    """The names of all layers below ``model``."""
    return [name for name, _ in model.named_modules() if name]


class LayerReader:
    """Catches what one layer gives, or is given, while the model runs; a context manager.

    Args:
        model: The network.
        layer: ``"penultimate"`` (the input of the last linear layer), ``"logits"`` (the network's output), or a layer by
            its name, of which the output is read. More than two dimensions are reduced to the mean over the last ones
            (positions of an image), or for a sequence [B, L, d] over the middle one.
        sequence: Whether the network takes blocks of tokens.

    Raises:
        UnknownNameError: If there is no such layer; the nearest names, and all names, are given.
    """

    def __init__(self, model: nn.Module, layer: str, sequence: bool = False) -> None:
        modules = dict(model.named_modules())
        self._sequence = sequence
        self._inward = layer == "penultimate"
        if layer == "penultimate":
            linear = [module for module in modules.values() if isinstance(module, nn.Linear)]
            if not linear:
                raise InputError("features", "the network has no linear layer", "name a layer, or take logits")
            self._module = linear[-1]
        elif layer == "logits":
            self._module = model
        elif layer in modules and layer:
            self._module = modules[layer]
        else:
            raise UnknownNameError("features", layer, ["penultimate", "logits", *layer_names(model)])
        self._caught: Tensor | None = None

    def __enter__(self) -> LayerReader:
        self._hook = self._module.register_forward_hook(self._catch)
        return self

    def __exit__(self, *error: object) -> None:
        self._hook.remove()

    def _catch(self, module: nn.Module, inputs: tuple[object, ...], output: object) -> None:
        found = inputs[0] if self._inward else output
        if isinstance(found, tuple | list):
            found = found[0]
        if not isinstance(found, Tensor) or not found.is_floating_point():
            raise InputError("features", f"the layer gives a {type(found).__name__}", "name one that gives a tensor")
        self._caught = found.detach()

    def read(self) -> Tensor:
        """Features [B, d] of the last run."""
        if self._caught is None:
            raise InputError("features", "the layer was not used", "name one that the network runs")
        found = self._caught
        if self._sequence:
            return found.mean(dim=1) if found.ndim == 3 else found.flatten(1)
        return found.flatten(2).mean(dim=2) if found.ndim > 2 else found


def record_features(
    model: nn.Module,
    x: Tensor,
    layers: Sequence[str],
    normalisation: tuple[Tensor, Tensor],
    device: str | torch.device = "cpu",
) -> dict[str, np.ndarray]:
    """Features of every record at some layers, the model in eval mode.

    Args:
        model: On ``device``; its mode is restored.
        x: Stored records [N, ...].
        layers: Names (:class:`LayerReader`).
        normalisation: Mean and standard deviation of the inputs.
        device: Where the model is.

    Returns:
        For each name float32 [N, d].

    Raises:
        InputError: If a layer does not exist or gives no tensor.
    """
    training = model.training
    model.eval()
    parts: dict[str, list[Tensor]] = {layer: [] for layer in layers}
    try:
        with torch.no_grad():
            for batch in x.split(_BATCH):
                readers = {layer: LayerReader(model, layer) for layer in layers}
                for reader in readers.values():
                    reader.__enter__()
                try:
                    model(normalise(batch.to(device), *normalisation))
                finally:
                    for reader in readers.values():
                        reader.__exit__()
                for layer, reader in readers.items():
                    parts[layer].append(reader.read().float().cpu())
    finally:
        model.train(training)
    return {layer: torch.cat(rows).numpy() for layer, rows in parts.items()}
