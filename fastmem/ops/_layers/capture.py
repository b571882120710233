"""Watches a model's calls of PyTorch functions that use its parameters, and takes the gradients at their outputs.

Parameters are told by identity, so it does not matter whether a module, the functional interface or attention's own
code uses them, and a use that no rule covers cannot slip by unseen: it raises :class:`NotCoveredError`. Every covered call
runs with its parameters detached, so that the backward pass computes no weight gradient, and a tap on its output hands
the gradient there to the recorder instead. Nothing is installed on the model.
"""

from __future__ import annotations

import sys
import types
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import cache
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from fastmem.errors import InputError
from fastmem.ops._layers import convolution, embedding, linear, normalisation
from fastmem.ops._layers.layout import Layout
from fastmem.ops._layers.rule import Arguments, Rule

__all__ = ["BATCH_STATISTICS", "Call", "Capture", "NotCoveredError", "Recorder", "Slot"]

RULES: dict[Any, Rule] = {
    F.linear: linear.RULE,
    torch.conv1d: convolution.CONV1D,
    torch.conv2d: convolution.CONV2D,
    torch.embedding: embedding.RULE,
    torch.layer_norm: normalisation.LAYER,
    torch.rms_norm: normalisation.RMS,
    torch.group_norm: normalisation.GROUP,
    torch.batch_norm: normalisation.BATCH,
    torch.instance_norm: normalisation.INSTANCE,
}

BATCH_STATISTICS = (
    "normalises by the statistics of the batch, so that every sample's loss depends on all samples and no sample has a "
    "gradient of its own"
)
_BATCH_STATISTICS_REMEDY = "call model.eval(), or use GroupNorm or LayerNorm"


class NotCoveredError(Exception):
    """A parameter is used in a way that no rule covers; the text says which and how."""


@dataclass(frozen=True)
class Slot:
    """A parameter, or a range of its rows.

    Attributes:
        name: Of the parameter.
        rows: First and one past the last row, ``None`` for the whole parameter.
    """

    name: str
    rows: tuple[int, int] | None = None


@dataclass
class Call:
    """One covered call.

    Attributes:
        index: 0 for the first covered call of a forward pass.
        rule: Its rule.
        arguments: Its arguments; the input is not kept here but by autograd.
        weight: Which parameter the weight is, ``None`` if it is none of the watched ones.
        bias: The same for the bias.
        output_shape: Of its output.
        layout: Where the batch lies, as far as it is known.
    """

    index: int
    rule: Rule
    arguments: Arguments
    weight: Slot | None
    bias: Slot | None
    output_shape: torch.Size
    layout: Layout | None = None

    @property
    def title(self) -> str:
        """Function and parameter, for messages."""
        slot = self.weight or self.bias
        return f"{self.rule.name} of {slot.name if slot else '?'!r}"


class Recorder(Protocol):
    """Gets every covered call on the way forward, and its input and output gradient on the way back."""

    def called(self, call: Call) -> None:
        """The call was made."""

    def returned(self, call: Call, x: Tensor, delta: Tensor) -> tuple[Tensor | None, Tensor | None]:
        """The gradient at its output has come; returns gradients for weight and bias to hand on, or ``None``."""
        ...


class Capture(TorchFunctionMode):
    """The watch, while it is entered.

    Args:
        parameters: Trainable parameters by name.
        recorder: Gets the calls.
        anchor: A leaf that every tap hangs on, so that a backward pass towards it reaches them all. ``None`` hangs them
            on the parameters themselves, which get the gradients that the recorder returns.
        layout: Finds out where the batch lies in a call.
    """

    def __init__(
        self,
        parameters: Mapping[str, Tensor],
        recorder: Recorder,
        anchor: Tensor | None,
        layout: Callable[[Call], Layout] | None = None,
    ) -> None:
        super().__init__()
        self._slots = {id(parameter): Slot(name) for name, parameter in parameters.items()}
        self._parameters = dict(parameters)
        self._recorder, self._anchor, self._layout = recorder, anchor, layout
        self._views: list[Tensor] = []  # kept alive: slots go by identity
        self._count = 0

    def __torch_function__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is torch.batch_norm:
            _require_running_statistics(*args, **kwargs)
        found = self._slots_among((*args, *kwargs.values()))
        if func is F.batch_norm or (found and torch.is_grad_enabled() and _is_guarded(func)):
            with self:  # watch what it is made of
                return _unguarded(func)(*args, **kwargs)
        if not found or not torch.is_grad_enabled():
            return func(*args, **kwargs)
        if func in RULES:
            return self._covered(RULES[func], func, args, kwargs)
        output = func(*args, **kwargs)
        self._require_no_gradient(func, found, args, output)
        return output

    def _slots_among(self, values: tuple[Any, ...]) -> list[Slot]:
        found: list[Slot] = []
        for value in values:
            if isinstance(value, Tensor):
                if (slot := self._slots.get(id(value))) is not None:
                    found.append(slot)
            elif isinstance(value, list | tuple):
                found += self._slots_among(tuple(value))
        return found

    def _covered(self, rule: Rule, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
        arguments = rule.arguments(*args, **kwargs)
        weight, bias = (self._slots.get(id(value)) for value in (arguments.weight, arguments.bias))
        if id(arguments.input) in self._slots:
            raise NotCoveredError(f"{self._slots[id(arguments.input)].name!r} is the input of {rule.name}")
        if arguments.refusal is not None:
            slot = weight or bias
            raise NotCoveredError(f"{slot.name if slot else '?'!r} belongs to {arguments.refusal}")

        def detached(value: Any) -> Any:
            return value.detach() if isinstance(value, Tensor) and id(value) in self._slots else value

        output = func(*map(detached, args), **{name: detached(value) for name, value in kwargs.items()})
        x = arguments.input
        kept = Arguments(x.new_empty(0), None, None, arguments.leading, arguments.options)
        call = Call(self._count, rule, kept, weight, bias, output.shape)
        self._count += 1
        if self._layout is not None:
            call.layout = self._layout(call)
        self._recorder.called(call)
        if self._anchor is not None:
            return _Tap.apply(output, self._recorder, call, x, self._anchor, None)
        ends = (arguments.weight if weight else None, arguments.bias if bias else None)
        return _Tap.apply(output, self._recorder, call, x, *ends)

    def _require_no_gradient(self, func: Any, found: list[Slot], args: tuple[Any, ...], output: Any) -> None:
        """Refuse an uncovered use, unless no gradient flows through it; views of whole rows are followed."""
        for value in output if isinstance(output, list | tuple) else (output,):
            if not isinstance(value, Tensor) or not value.requires_grad or id(value) in self._slots:
                continue
            rows = self._rows_of(value, found[0])
            if rows is None:
                name = getattr(func, "__name__", str(func))
                raise NotCoveredError(f"{found[0].name!r} is used by {name}, for which there is no rule")
            self._slots[id(value)] = Slot(found[0].name, rows)
            self._views.append(value)

    def _rows_of(self, value: Tensor, slot: Slot) -> tuple[int, int] | None:
        parameter = self._parameters[slot.name]
        if (
            value._base is not parameter
            or value.ndim != parameter.ndim
            or value.shape[1:] != parameter.shape[1:]
            or value.stride() != parameter.stride()
            or not parameter.is_contiguous()
            or value.numel() == 0
        ):
            return None
        first = int(value.storage_offset() - parameter.storage_offset()) // parameter[0].numel()
        return first, first + value.shape[0]


class _Tap(torch.autograd.Function):
    """The identity; its backward pass hands the gradient to the recorder."""

    @staticmethod
    def forward(
        ctx: Any, output: Tensor, recorder: Recorder, call: Call, x: Tensor, weight: Tensor | None, bias: Tensor | None
    ) -> Tensor:
        ctx.mark_dirty(output)  # the same tensor, no copy and no view: the model may go on in place
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(x.detach())
        ctx.recorder, ctx.call = recorder, call
        return output

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Any) -> tuple[Any, ...]:
        (delta,) = grad_outputs
        if delta is None:
            return (None,) * 6
        (x,) = ctx.saved_tensors
        weight, bias = ctx.recorder.returned(ctx.call, x, delta)
        return (delta if ctx.needs_input_grad[0] else None), None, None, None, weight, bias


def _require_running_statistics(*args: Any, **kwargs: Any) -> None:
    training = kwargs["training"] if "training" in kwargs else args[5]
    if training:
        raise InputError("model", f"a batch normalisation {BATCH_STATISTICS}", _BATCH_STATISTICS_REMEDY)


def require_samples_apart(model: nn.Module) -> None:
    """Refuse batch normalisation in training mode, by name, before anything runs."""
    for name, module in model.named_modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and (module.training or module.running_mean is None):
            title = f"{type(module).__name__} {name!r}"
            remedy = _BATCH_STATISTICS_REMEDY
            if not module.training:
                title, remedy = f"{title} (track_running_stats=False)", "use one with running statistics, or GroupNorm"
            raise InputError("model", f"{title} {BATCH_STATISTICS}", remedy)


# Functions of torch.nn.functional first ask whether somebody watches, and hand the whole call over. A copy that does not
# ask runs the same code, whose parts are then what is watched.

_GUARDS = ("has_torch_function", "has_torch_function_unary", "has_torch_function_variadic")


def _is_guarded(func: Any) -> bool:
    return isinstance(func, types.FunctionType) and func.__globals__ is F.__dict__


@cache
def _unguarded(func: Callable[..., Any]) -> Callable[..., Any]:
    assert isinstance(func, types.FunctionType)
    space = {**func.__globals__, **dict.fromkeys(_GUARDS, lambda *_: False)}
    copy = types.FunctionType(func.__code__, space, func.__name__, func.__defaults__, func.__closure__)
    copy.__kwdefaults__ = func.__kwdefaults__
    return copy


@contextmanager
def eagerly() -> Iterator[None]:
    """Gradients on, and compiled functions run as they were written: a compiled graph hides what it is made of."""
    # Where the compiler has never been imported (seconds), nothing is compiled.
    compiler = "torch._dynamo" in sys.modules
    with torch.enable_grad(), torch.compiler.set_stance("force_eager") if compiler else nullcontext():
        yield
