"""Which implementation of an operator runs, and why the others do not.

An operator ``op`` is a public module ``fastmem.ops.<op>`` and up to four implementations of it, each in the module
``fastmem.ops.<backend>.<op>`` that calls :func:`register` when it is imported. They are imported at the first use of
the operator; one that cannot be imported is not an error but a reason that :func:`explain` shows. So a new operator
plugs in by adding such files, and nothing here changes.
"""

from __future__ import annotations

import importlib
import importlib.util
import math
import os
import pkgutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from fastmem.errors import InputError, UnknownNameError

__all__ = ["Backend", "Explanation", "explain", "operators", "register", "select", "use_backend"]

#: Best last: at equal priority the later one wins.
BACKEND_NAMES = ("reference", "cpu", "triton", "cuda")

#: Public functions that are a face of another operator, and the options by which they call it.
_FACES = {"logit_margin": ("logit_stats", {"margin_only": True})}

#: Public functions that explain themselves: their module has an ``explanation``.
_OWN_WAYS = ("grad_stats", "per_sample_grads")

_NOT_WRITTEN = "this operator has no such implementation"


@dataclass(frozen=True)
class Backend:
    """One implementation of one operator.

    Attributes:
        op: The operator, for example ``"kl_div"``.
        name: ``"reference"``, ``"cpu"``, ``"triton"`` or ``"cuda"``.
        priority: Under ``"auto"`` the highest one wins among those that support the arguments. A callable gets the
            arguments of ``forward``, so that the choice may follow shapes and dtypes.
        available: ``None`` if it can run on this machine, else the reason why not. Asked once.
        supports: Takes the arguments of ``forward``: ``None`` if it accepts them, else the reason why not.
        forward: Computes the operator.
        backward: Computes its gradients, where the operator has any.
        value: The first result of ``forward`` alone, where that is cheaper.
    """

    op: str
    name: str
    priority: int | Callable[..., int]
    available: Callable[[], str | None]
    supports: Callable[..., str | None]
    forward: Callable[..., Any]
    backward: Callable[..., Any] | None = None
    value: Callable[..., Any] | None = None


@dataclass
class _Implementations:
    """What is known about the implementations of one operator."""

    backends: dict[str, Backend] = field(default_factory=dict)
    import_errors: dict[str, str] = field(default_factory=dict)
    loaded: bool = False
    _unavailable: dict[str, str | None] = field(default_factory=dict)
    _usable: tuple[Backend, ...] | None = None
    _by_arguments: bool = False

    def add(self, backend: Backend) -> None:
        self.backends[backend.name] = backend
        self._unavailable.pop(backend.name, None)
        self._usable = None

    def why_unavailable(self, name: str) -> str | None:
        backend = self.backends.get(name)
        if backend is None:
            return self.import_errors.get(name, _NOT_WRITTEN)
        if name not in self._unavailable:
            self._unavailable[name] = backend.available()
        return self._unavailable[name]

    def best(self, args: tuple[Any, ...]) -> Backend | None:
        """The choice of ``"auto"``, on the path of every call: asks no more backends than needed."""
        if self._usable is None:
            usable = [self.backends[name] for name in BACKEND_NAMES if self.why_unavailable(name) is None]
            self._by_arguments = any(callable(backend.priority) for backend in usable)
            self._usable = tuple(usable if self._by_arguments else sorted(usable, key=_rank(None), reverse=True))
        fitting = (backend for backend in self._usable if backend.supports(*args) is None)
        return max(fitting, key=_rank(args), default=None) if self._by_arguments else next(fitting, None)


_operators: dict[str, _Implementations] = {}
_forced: ContextVar[str | None] = ContextVar("fastmem_backend", default=None)


def register(backend: Backend) -> None:
    """Add an implementation of an operator; one of the same name is replaced.

    Raises:
        UnknownNameError: The backend's name is none of the four.
    """
    if backend.name not in BACKEND_NAMES:
        raise UnknownNameError("backend", backend.name, BACKEND_NAMES)
    _operators.setdefault(backend.op, _Implementations()).add(backend)


def operators() -> tuple[str, ...]:
    """The names of all operators: one for each module of ``fastmem.ops.reference``."""
    from fastmem.ops import reference

    return tuple(sorted(module.name for module in pkgutil.iter_modules(reference.__path__)))


def select(op: str, *args: Any) -> Backend:
    """The implementation that runs for these arguments under the current setting.

    Args:
        op: Name of the operator.
        *args: The arguments of its ``forward``.

    Raises:
        UnknownNameError: There is no such operator, or ``FASTMEM_BACKEND`` names no backend.
        InputError: A backend is forced that cannot run here or does not take these arguments.
    """
    implementations = _implementations(op)
    setting = current_setting()
    if setting == "auto":
        chosen = implementations.best(args)
        if chosen is None:
            raise InputError("backend", f"no implementation of {op} takes these arguments", f"see explain({op!r}, ...)")
        return chosen
    reason = implementations.why_unavailable(setting)
    if reason is None:
        backend = implementations.backends[setting]
        reason = backend.supports(*args)
        if reason is None:
            return backend
    raise InputError("backend", f"{setting!r} cannot run {op} here ({reason})", "use 'auto' or 'reference'")


@contextmanager
def use_backend(name: str) -> Iterator[None]:
    """Force one implementation of every operator within a ``with`` block.

    The setting belongs to the current thread or asynchronous task, and blocks nest. It goes before the environment
    variable ``FASTMEM_BACKEND``, which sets the same for a whole process. Around code under ``torch.compile`` it
    holds at the time when the compiled function runs; put it outside that function.

    Args:
        name: ``"reference"``, ``"cpu"``, ``"triton"``, ``"cuda"``, or ``"auto"`` for the fastest that fits.

    Raises:
        UnknownNameError: ``name`` is none of these.
    """
    token = _forced.set(_checked_setting("name", name))
    try:
        yield
    finally:
        _forced.reset(token)


def current_setting() -> str:
    """The backend in force: the innermost :func:`use_backend`, else ``FASTMEM_BACKEND``, else ``"auto"``."""
    forced = _forced.get()
    if forced is not None:
        return forced
    from_environment = os.environ.get("FASTMEM_BACKEND")
    return _checked_setting("FASTMEM_BACKEND", from_environment) if from_environment else "auto"


@dataclass(frozen=True)
class Explanation:
    """Which implementation of an operator would run, and why each of the others would not.

    Attributes:
        op: The operator.
        setting: The backend in force, ``"auto"`` if none is forced.
        arguments: The arguments in words; empty if :func:`explain` got none.
        chosen: The backend that would run, ``None`` if none would.
        remarks: What there is to say about every backend, by its name.
    """

    op: str
    setting: str
    arguments: str
    chosen: str | None
    remarks: dict[str, str]

    def __str__(self) -> str:
        width = max(map(len, self.remarks))
        head = f"{self.op}({self.arguments})" if self.arguments else self.op
        lines = [f"{head}, backend setting: {self.setting}"]
        for name, remark in self.remarks.items():
            lines.append(f"{'->' if name == self.chosen else '  '} {name:<{width}}  {remark}")
        return "\n".join(lines)


def explain(op: str, *args: Any, **kwargs: Any) -> Explanation:
    """Say which implementation of an operator would run under the current setting, and why the others would not.

    Args:
        op: Name of the operator, for example ``"kl_div"``.
        *args: The arguments of a call of the public function. Without any, only what this machine has is judged.
        **kwargs: Its keyword arguments.

    Returns:
        An :class:`Explanation`; ``str()`` of it is a line for each backend, the chosen one marked with an arrow.

    Raises:
        UnknownNameError: There is no such operator.
        InputError: The operator refuses these arguments.
    """
    if (say := _own_explanation(op)) is not None:
        return say(*args, **kwargs)
    shown = op
    op, options = _FACES.get(op, (op, {}))
    implementations = _implementations(op)
    call = _forward_arguments(op, args, {**kwargs, **options}) if args or kwargs else None
    setting = current_setting()
    runnable: list[Backend] = []
    remarks: dict[str, str] = {}
    for name in BACKEND_NAMES:
        reason = implementations.why_unavailable(name)
        if reason is not None:
            remarks[name] = f"not available: {reason}"
            continue
        backend = implementations.backends[name]
        reason = backend.supports(*call) if call is not None else None
        if reason is not None:
            remarks[name] = f"does not take these arguments: {reason}"
            continue
        remarks[name] = "available"
        if setting in ("auto", name):
            runnable.append(backend)
    chosen = max(runnable, key=_rank(call), default=None)
    _remark_on_choice(remarks, setting, chosen)
    words = ", ".join(map(_in_words, call)) if call is not None else ""
    return Explanation(shown, setting, words, chosen.name if chosen else None, remarks)


def _own_explanation(op: str) -> Callable[..., Explanation] | None:
    """That of a function which chooses between ways of its own, not between backends."""
    return importlib.import_module(f"fastmem.ops.{op}").explanation if op in _OWN_WAYS else None


def _implementations(op: str) -> _Implementations:
    implementations = _operators.get(op)
    if implementations is None or not implementations.loaded:
        implementations = _load(op)
    return implementations


def _load(op: str) -> _Implementations:
    """Import every implementation of the operator; each registers itself."""
    errors: dict[str, str] = {}
    for name in BACKEND_NAMES:
        module = f"fastmem.ops.{name}.{op}"
        try:
            importlib.import_module(module)
        except ModuleNotFoundError as error:
            is_itself = error.name is not None and f"{module}.".startswith(f"{error.name}.")
            errors[name] = _NOT_WRITTEN if is_itself else str(error)
        except ImportError as error:
            errors[name] = str(error)
    if op not in _operators:
        raise UnknownNameError("op", op, [*operators(), *_FACES, *_OWN_WAYS])
    implementations = _operators[op]
    implementations.import_errors = errors
    implementations.loaded = True
    return implementations


def _rank(args: tuple[Any, ...] | None) -> Callable[[Backend], tuple[float, int]]:
    """The order of preference for these arguments; without any, a priority that depends on them counts as highest."""

    def rank(backend: Backend) -> tuple[float, int]:
        priority: float
        if not callable(backend.priority):
            priority = backend.priority
        else:
            priority = math.inf if args is None else backend.priority(*args)
        return priority, BACKEND_NAMES.index(backend.name)

    return rank


def _checked_setting(argument: str, name: str) -> str:
    if name not in ("auto", *BACKEND_NAMES):
        raise UnknownNameError(argument, name, ["auto", *BACKEND_NAMES])
    return name


def _forward_arguments(op: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, ...]:
    """What ``forward`` would get for a public call: the public module's ``forward_arguments`` translates, if any."""
    public = f"fastmem.ops.{op}"
    exists = importlib.util.find_spec(public) is not None
    translate = getattr(importlib.import_module(public), "forward_arguments", None) if exists else None
    if translate is None:
        if kwargs:
            raise InputError("explain", f"{op} takes no keyword arguments here", "give the arguments by position")
        return args
    return translate(*args, **kwargs)


def _remark_on_choice(remarks: dict[str, str], setting: str, chosen: Backend | None) -> None:
    for name, remark in remarks.items():
        if remark != "available":
            continue
        if chosen is not None and name == chosen.name:
            remarks[name] = "runs" if setting == "auto" else "runs: forced by the setting"
        else:
            remarks[name] = "available, lower priority" if setting == "auto" else "available, but another is forced"


def _in_words(value: Any) -> str:
    if not isinstance(value, Tensor):
        return repr(value)
    return f"{str(value.dtype).removeprefix('torch.')} {list(value.shape)} on {value.device}"
