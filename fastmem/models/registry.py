"""A network by name or by import path, initialised from a seed."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from fastmem.errors import FastmemError, InputError, UnknownNameError
from fastmem.imports import import_object, is_import_path
from fastmem.models.cnn import CNN
from fastmem.models.mlp import MLP
from fastmem.models.resnet import resnet18
from fastmem.models.vit import vit
from fastmem.models.wide_resnet import WideResNet

__all__ = ["MODEL_NAMES", "build_model", "check_model", "count_parameters"]

# Each takes (input_shape, num_classes, **options).
_MODELS: dict[str, Callable[..., nn.Module]] = {
    "mlp": MLP,
    "cnn": CNN,
    "resnet18": resnet18,
    "wrn28-2": WideResNet,
    "vit": vit,
}

MODEL_NAMES = tuple(_MODELS)


def build_model(
    name_or_path: str, input_shape: Sequence[int], num_classes: int, seed: int, **options: Any
) -> nn.Module:
    """A freshly initialised network on the CPU; the same seed gives the same weights, on any device.

    Args:
        name_or_path: ``mlp``, ``cnn``, ``resnet18``, ``wrn28-2`` or ``vit``, or ``package.module:Class`` (or a function), which
            is called with ``options`` and with those of ``input_shape`` and ``num_classes`` that its signature takes.
        input_shape: Shape of one sample, (C, H, W) or (D,).
        num_classes: Width of the output.
        seed: Decides the initial weights; torch's global random state is left as it was.
        options: Options of the network, such as ``hidden=(128,)`` for an ``mlp``.

    Raises:
        InputError: If there is no such network, it does not take an option or the input shape, or a user's own does
            not map a batch [B, *input_shape] to logits [B, num_classes].
    """
    shape = tuple(int(size) for size in input_shape)
    own = is_import_path(name_or_path)
    if not own and name_or_path not in _MODELS:
        raise UnknownNameError("model", name_or_path, MODEL_NAMES)
    factory = import_object("model", name_or_path) if own else _MODELS[name_or_path]
    arguments = _arguments(name_or_path, factory, {"input_shape": shape, "num_classes": num_classes}, options)
    with torch.random.fork_rng(devices=[]):
        # Not torch.manual_seed: that would reseed the GPUs too, whose state is not restored here.
        torch.default_generator.manual_seed(seed)
        try:
            model = factory(**arguments)
        except FastmemError:
            raise
        except Exception as error:  # a user's constructor may fail in any way
            raise _failed(name_or_path, "could not be built", error) from error
        if own:
            check_model(name_or_path, model, shape, num_classes)
    return model


def check_model(name: str, model: Any, input_shape: Sequence[int], num_classes: int) -> None:
    """Show a user's own network two blank samples, in eval mode.

    Raises:
        InputError: If it is no ``torch.nn.Module``, fails, or gives anything but logits [2, num_classes].
    """
    if not isinstance(model, nn.Module):
        raise InputError("model", f"{name} gave a {type(model).__name__}", "give a torch.nn.Module")
    device = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
    training = model.training
    try:
        with torch.no_grad():
            logits = model.eval()(torch.zeros(2, *input_shape, device=device))
    except Exception as error:  # a user's network may fail in any way
        raise _failed(name, f"fails on a batch [2, {', '.join(map(str, input_shape))}]", error) from error
    finally:
        model.train(training)
    if not isinstance(logits, Tensor) or logits.shape != (2, num_classes) or not logits.is_floating_point():
        given = f"{logits.dtype} {list(logits.shape)}" if isinstance(logits, Tensor) else type(logits).__name__
        raise InputError(
            "model", f"{name} maps 2 samples to {given}", f"it should give floating-point logits [2, {num_classes}]"
        )


def count_parameters(model: nn.Module) -> int:
    """Number of trainable values."""
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)


def _arguments(name: str, factory: Any, offered: dict[str, Any], options: dict[str, Any]) -> dict[str, Any]:
    """``options``, and what of ``offered`` the signature of ``factory`` takes."""
    if not callable(factory):
        raise InputError("model", f"{name} is a {type(factory).__name__}", "name a class of torch.nn.Module")
    parameters = inspect.signature(factory).parameters
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()):
        return offered | options
    for option in options:
        if option not in parameters:
            accepted = ", ".join(key for key in parameters if key not in offered) or "none"
            raise InputError(option, f"no option of model {name}", f"its options: {accepted}")
    return {key: value for key, value in offered.items() if key in parameters} | options


def _failed(name: str, what: str, error: Exception) -> InputError:
    reason = " ".join(f"{type(error).__name__}: {error}".split())
    return InputError("model", f"{name} {what} ({reason})", "correct the class or its options")
