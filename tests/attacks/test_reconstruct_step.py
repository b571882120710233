"""A step of the attack against the formula written out, that it asks nothing of the device, and its replay as a graph."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

import fastmem
from fastmem.attacks import reconstruct_graph
from fastmem.attacks.reconstruct import ReconstructSettings, State, balanced_labels, reconstruct
from fastmem.attacks.reconstruct_graph import WARM_UP, Replayed
from fastmem.attacks.reconstruct_step import Steps
from fastmem.ops._kkt.network import _perceptron
from fastmem.ops.kkt_residual import KktNetwork, kkt_residual

D, M = 12, 6
SETTINGS = [
    ReconstructSettings(lr_x=0.02, lr_lambda=1e-3, alpha=20.1, init_scale=0.5, low=-0.3, high=0.4, seed=1),
    ReconstructSettings(lr_x=0.05, lr_lambda=1e-2, alpha=50.3, init_scale=0.5, low=-1.0, high=1.0, seed=2),
]
KINDS = {
    "constant": {},
    "adaptive": {"step": "adaptive", "lr_x": 3.0},
    "cosine": {"step": "cosine"},
    "adam": {"optimizer": "adam", "step": "cosine"},
    "free": {"lambda_min": None},
}


def network(outputs: int = 1, dtype: torch.dtype = torch.float64) -> KktNetwork:
    torch.manual_seed(0)
    layers = [nn.Linear(D, 40), nn.ReLU(), nn.Linear(40, 30), nn.ReLU(), nn.Linear(30, outputs, bias=False)]
    return KktNetwork.of(nn.Sequential(*layers).to(dtype).eval())


def steps_of(net: KktNetwork, settings: list[ReconstructSettings], outputs: int = 1, m: int = M) -> Steps:
    labels = balanced_labels(m, outputs).expand(len(settings), m).contiguous()
    return Steps(net, settings, labels, outputs, State.begin(settings, m, (D,), net))


class Functional:
    """The step as a chain of new tensors and Python's decisions, setting by setting."""

    def __init__(self, net: KktNetwork, one: ReconstructSettings) -> None:
        self.net, self.one = net, one
        state = State.begin([one], M, (D,), net)
        self.x, self.multipliers, self.safe = state.x[0], state.multipliers[0], state.x[0]
        self.sign = balanced_labels(M).to(self.x.dtype) / M
        self.moments = {name: torch.zeros_like(value[0]) for name, value in state.moments.items()}
        self.factor, self.last, self.t, self.dead = 1.0, math.inf, 0, False

    def step(self) -> None:
        one = self.one
        found = kkt_residual(self.net, self.x, self.multipliers * self.sign, alpha=one.alpha)
        loss = float(found.loss)
        self.t += 1
        if self.dead or not math.isfinite(loss):
            self.dead, self.x, self.multipliers = True, self.safe, torch.zeros_like(self.multipliers)
            return
        outside = torch.relu(self.x - one.high) - torch.relu(one.low - self.x)
        grad_x = found.grad_inputs + 2 * outside
        grad_lambda = found.grad_coefficients * self.sign
        if one.lambda_min is not None:
            grad_lambda = grad_lambda - 10 * torch.relu(one.lambda_min - self.multipliers)
        if one.step == "adaptive":
            first = float(next(iter(found.per_parameter.values())))
            if loss > self.last + 0.2 * first:
                self.factor, self.last = self.factor * 0.5, loss
                self.moments = {name: torch.zeros_like(value) for name, value in self.moments.items()}
            else:
                self.factor, self.last = min(self.factor * 1.02, 16), min(loss, self.last)
        elif one.step == "cosine":
            self.factor = 0.5 * (1 + math.cos(math.pi * (self.t - 1) / one.iterations))
        self.x = self.x - self.moved("x", grad_x) * (one.lr_x * self.factor)
        self.multipliers = self.multipliers - self.moved("lambda", grad_lambda) * (one.lr_lambda * self.factor)

    def moved(self, name: str, gradient: Tensor) -> Tensor:
        if self.one.optimizer == "sgd":
            self.moments[name] = self.one.momentum * self.moments[name] + gradient
            return self.moments[name]
        mean, square = self.moments[name], self.moments[f"{name}_sq"]
        self.moments[name] = mean + (1 - 0.9) * (gradient - mean)
        self.moments[f"{name}_sq"] = square + (1 - 0.999) * (gradient**2 - square)
        mean_hat = self.moments[name] / (1 - 0.9**self.t)
        return mean_hat / ((self.moments[f"{name}_sq"] / (1 - 0.999**self.t)).sqrt() + 1e-8)


@pytest.mark.parametrize("kind", KINDS)
def test_a_step_in_place_is_the_functional_step(kind: str) -> None:
    net = network()
    settings = [replace(one, iterations=40, **KINDS[kind]) for one in SETTINGS]
    with fastmem.use_backend("reference"):
        steps = steps_of(net, settings)
        apart = [Functional(net, one) for one in settings]
        kept = {name: value.data_ptr() for name, value in steps.state.tensors().items() if name in State._PLAIN}
        halved = False
        for _ in range(25):
            steps()
            for each in apart:
                each.step()
                halved |= each.factor < 1
    # Adam's bias corrections are multiplied together in another order, and a batch may sum in another.
    for at, each in enumerate(apart):
        torch.testing.assert_close(steps.state.x[at], each.x, rtol=1e-9, atol=1e-11)
        torch.testing.assert_close(steps.state.multipliers[at], each.multipliers, rtol=1e-9, atol=1e-11)
        assert float(steps.state.factor[at]) == pytest.approx(each.factor, rel=1e-12)
    assert halved == (kind in ("adaptive", "cosine", "adam"))
    assert all(steps.state.tensors()[name].data_ptr() == address for name, address in kept.items())


def test_momentum_gives_the_very_bits_of_the_functional_step() -> None:
    net = network(dtype=torch.float32)
    one = replace(SETTINGS[0], lambda_min=None, step="adaptive", iterations=40, lr_x=0.0625, lr_lambda=0.0078125)
    with fastmem.use_backend("reference"):
        steps, apart = steps_of(net, [one]), Functional(net, one)
        for _ in range(12):
            apart.factor = 2.0 ** round(math.log2(apart.factor))  # powers of two: a product with them rounds nothing
            steps.state.factor.fill_(apart.factor)
            steps()
            apart.step()
            apart.factor = float(steps.state.factor)
    assert torch.equal(steps.state.moments["x"][0], apart.moments["x"])
    assert torch.equal(steps.state.x[0], apart.x)
    assert torch.equal(steps.state.multipliers[0], apart.multipliers)


def test_a_setting_dies_alone_and_rests_at_its_last_sound_candidates() -> None:
    net = network(dtype=torch.float32)
    wild = replace(SETTINGS[0], lr_x=1e12, lr_lambda=1e12)
    with fastmem.use_backend("reference"):
        steps, apart = steps_of(net, [wild, SETTINGS[1]]), Functional(net, SETTINGS[1])
        start = steps.state.x[0].clone()
        for _ in range(12):
            steps()
            apart.step()
    died = int(steps.state.diverged[0])
    assert 1 < died < 12
    assert torch.equal(steps.state.x[0], start)
    assert not steps.state.multipliers[0].any()
    assert all(bool(moment.isfinite().all()) for moment in steps.state.moments.values())
    assert int(steps.state.diverged[1]) == 0
    torch.testing.assert_close(steps.state.x[1], apart.x, rtol=1e-4, atol=1e-5)


class AsksNothing(TorchDispatchMode):
    """Raises where the host would have to wait for a value of the device."""

    ASKING = ("_local_scalar_dense", "item", "nonzero", "is_nonzero", "equal", "masked_select")

    def __init__(self) -> None:
        super().__init__()
        self.seen = 0

    def __torch_dispatch__(self, function: Any, types: Any, arguments: Any = (), options: Any = None) -> Any:
        self.seen += 1
        name = function.overloadpacket.__name__
        moves = name == "_to_copy" and (options or {}).get("device") not in (None, arguments[0].device)
        moves |= name == "copy_" and arguments[0].device != arguments[1].device
        if name in self.ASKING or moves:
            raise AssertionError(f"the step asks the device: {function}")
        return function(*arguments, **(options or {}))


@pytest.mark.parametrize("outputs", [1, 3])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("backend", ["reference", "cpu"])
def test_a_step_asks_nothing_of_the_device(backend: str, kind: str, outputs: int) -> None:
    if fastmem.explain("kkt_residual").remarks[backend].startswith("not avail"):
        pytest.skip("the CPU kernels are not built")
    settings = [replace(one, **KINDS[kind]) for one in SETTINGS]
    with fastmem.use_backend(backend):
        steps = steps_of(network(outputs), settings, outputs)
        steps()  # what is derived from the weights once
        with AsksNothing() as mode:
            steps()
    assert mode.seen > 20
    with pytest.raises(AssertionError, match="asks"), AsksNothing():
        bool(steps.losses.sum() > 0)


@pytest.mark.parametrize("form", ["gram", "direct", "double backward"])
def test_a_step_stays_on_one_device(form: str) -> None:
    # Tensors without values on a device that is none: every operation between it and the host raises, and so does every
    # question about a value.
    m = 35 if form == "direct" else M
    layers = [nn.Linear(D, 40), nn.ReLU(), nn.Linear(40, 30), nn.ReLU(), nn.Linear(30, 1, bias=False)]
    if form == "double backward":
        layers.append(nn.Identity())
    net = _unchecked(nn.Sequential(*layers).to("meta").eval())
    assert bool(net.layers) == (form != "double backward")
    labels = balanced_labels(m).expand(2, m).contiguous()
    with fastmem.use_backend("reference"):
        steps = Steps(net, SETTINGS, labels, 1, State.begin(SETTINGS, m, (D,), net))
        steps()
        with AsksNothing() as mode:
            steps()
    assert mode.seen > 20


def _unchecked(model: nn.Sequential) -> KktNetwork:
    """As KktNetwork.of, which also looks at the weights' values."""
    parameters = {name: value.detach() for name, value in model.named_parameters()}
    layers, reason = _perceptron(model, parameters, parameters)
    return KktNetwork(model, parameters, layers, reason)


# ------------------------------------------------------------------------------------------------------------- the graph


class Recorder:
    """In the place of CUDA: a graph that replays by calling the function."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, fails: bool = False) -> None:
        self.beside = self.recorded = self.replayed = 0
        self.fails = fails
        monkeypatch.setattr(reconstruct_graph, "_beside", self._beside)
        monkeypatch.setattr(reconstruct_graph, "_record", self._record)

    def _beside(self, step: Any, device: torch.device) -> None:
        self.beside += 1
        step()

    def _record(self, step: Any, device: torch.device) -> Any:
        self.recorded += 1
        if self.fails:
            raise RuntimeError("operation not permitted when stream is capturing")
        self.step = step
        return self

    def replay(self) -> None:
        self.replayed += 1
        self.step()


def test_a_graph_replays_what_would_run_without_it(monkeypatch: pytest.MonkeyPatch) -> None:
    net = network()
    plain = steps_of(net, SETTINGS)
    for _ in range(10):
        plain()
    recorder, steps = Recorder(monkeypatch), steps_of(net, SETTINGS)
    replayed = Replayed(steps, torch.device("cuda"))
    for _ in range(10):
        replayed()
    assert (recorder.beside, recorder.recorded, recorder.replayed) == (WARM_UP, 1, 10 - WARM_UP)
    assert replayed.reason is None
    assert torch.equal(steps.state.x, plain.state.x)


def test_where_nothing_can_be_recorded_steps_go_on_without(monkeypatch: pytest.MonkeyPatch) -> None:
    net = network()
    plain = steps_of(net, SETTINGS)
    for _ in range(10):
        plain()
    recorder, steps = Recorder(monkeypatch, fails=True), steps_of(net, SETTINGS)
    replayed = Replayed(steps, torch.device("cuda"))
    for _ in range(10):
        replayed()
    assert recorder.recorded == 1
    assert "not permitted" in (replayed.reason or "")
    assert torch.equal(steps.state.x, plain.state.x)


def test_on_a_cpu_there_is_no_graph_and_the_attack_says_why() -> None:
    found = reconstruct(network(), M, replace(SETTINGS[0], iterations=3), sample_shape=(D,))
    assert found.no_graph == "graphs are CUDA's, and the network is on cpu"


def test_a_restored_state_shares_no_memory_with_the_file_it_came_from() -> None:
    steps = steps_of(network(), SETTINGS)
    kept = steps.state.tensors()
    again = State.of_tensors(kept)
    assert all(getattr(again, name).data_ptr() != kept[name].data_ptr() for name in State._PLAIN)
