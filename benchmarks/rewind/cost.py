"""What one step of PVE scoring costs on ResNet-18: ``python -m benchmarks.rewind.cost OUT.json``.

Each contestant runs in a process of its own, whose peak memory is the system's own figure. All look at 16 images of
3 x 32 x 32: a training step at 16 members, PVE at 8 members and 8 reference records. The contestants:

- ``training``: forward, backward and SGD step of the network, batch normalisation in training mode;
- ``pve``: forward, backward, scores of every weight and SGD step, as :func:`fastmem.defenses.weight_scores` takes it;
- ``tensor loop``: the same with ``score += (g * w).abs()`` in a Python loop over parameters after one backward pass;
- ``parameter loop``: the same with the gradient of one parameter asked for at a time, as code that scores "each
  parameter in turn" does.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.machine import OtherLoad, cpu_name, peak_memory
from fastmem.defenses import eligible_weights
from fastmem.models import build_model
from fastmem.ops import kl_div
from fastmem.ops.weight_importance import weight_importance

CONTESTANTS = ("training", "pve", "tensor loop", "parameter loop", "pve, all", "parameter loop, all")
_RECORDS = 8
# A round of it takes as long as some dozens of the others'.
_ROUNDS = {"parameter loop": 1, "parameter loop, all": 1}
_ACCUMULATE_ROUNDS = 30


def main(out: Path) -> None:
    """Measures every contestant and writes the file."""
    found = {name: json.loads(_child(name)) for name in CONTESTANTS}
    accumulate = json.loads(_child("accumulate"))
    result = {
        "machine": cpu_name(),
        "torch": str(torch.__version__),
        "threads": 1,
        "records": 2 * _RECORDS,
        "contestants": found,
        "pve_over_training": round(found["pve"]["median_s"] / found["training"]["median_s"], 3),
        "tensor_loop_over_pve": round(found["tensor loop"]["median_s"] / found["pve"]["median_s"], 3),
        "parameter_loop_over_pve": round(found["parameter loop"]["median_s"] / found["pve"]["median_s"], 3),
        "parameter_loop_over_pve_all": round(
            found["parameter loop, all"]["median_s"] / found["pve, all"]["median_s"], 3
        ),
        "accumulation_alone": accumulate,
    }
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(result, indent=1))


def _child(name: str) -> str:
    command = [sys.executable, "-m", "benchmarks.rewind.cost", "--one", name]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def one(name: str) -> dict[str, float]:
    """Median seconds of a contestant's step, and what its process held at most."""
    torch.set_num_threads(1)
    if name == "accumulate":
        return _accumulation()
    step = _step(name)
    before = _peak()
    if name not in _ROUNDS:
        step()
    load = OtherLoad()
    seconds = []
    for _ in range(_ROUNDS.get(name, 5)):
        start = time.perf_counter()
        step()
        seconds.append(time.perf_counter() - start)
    return {
        "median_s": round(statistics.median(seconds), 4),
        "min_s": round(min(seconds), 4),
        "max_s": round(max(seconds), 4),
        "peak_mib": round(_peak(), 1),
        "peak_mib_of_steps": round(_peak() - before, 1),
        "other_load": round(load.cores(), 2),
    }


def _peak() -> float:
    return peak_memory() / 2**20


def _step(name: str) -> Callable[[], None]:
    model = build_model("resnet18", (3, 32, 32), 10, 0)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2 * _RECORDS, 3, 32, 32, generator=generator)
    y = torch.randint(0, 10, (2 * _RECORDS,), generator=generator)
    untrained = torch.randn(_RECORDS, 10, generator=generator)
    everything = name.endswith(", all")
    name = name.removesuffix(", all")
    names = list(eligible_weights(model, norms=everything, biases=everything))
    parameters = dict(model.named_parameters())
    scores: dict[str, Tensor] = {key: torch.zeros_like(parameters[key].detach()) for key in names}
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    model.train(name == "training")

    def loss() -> Tensor:
        if name == "training":
            return F.cross_entropy(model(x), y)
        inside = F.cross_entropy(model(x[:_RECORDS]), y[:_RECORDS])
        return 0.5 * inside + 0.5 * kl_div(untrained, model(x[_RECORDS:])).mean()

    def step() -> None:
        value = loss()
        optimizer.zero_grad()
        if name == "parameter loop":
            for key in names:
                (gradient,) = torch.autograd.grad(value, parameters[key], retain_graph=True)
                with torch.no_grad():
                    scores[key] += (gradient * parameters[key]).abs()
                parameters[key].grad = gradient
        else:
            value.backward()
        if name == "pve":
            gradients = {key: parameters[key].grad for key in names}
            weight_importance({key: parameters[key] for key in names}, gradients, scores=scores)
        elif name == "tensor loop":
            _loop(names, parameters, scores)
        optimizer.step()

    return step


def _loop(names: list[str], parameters: dict[str, nn.Parameter], scores: dict[str, Tensor]) -> None:
    with torch.no_grad():
        for key in names:
            gradient = parameters[key].grad
            assert gradient is not None
            scores[key] += (gradient * parameters[key]).abs()


def _accumulation() -> dict[str, float]:
    """Milliseconds of adding up 11 million scores, without the passes through the network."""
    model = build_model("resnet18", (3, 32, 32), 10, 0)
    names = list(eligible_weights(model))
    parameters = dict(model.named_parameters())
    scores = {key: torch.zeros_like(parameters[key].detach()) for key in names}
    for parameter in parameters.values():
        parameter.grad = torch.randn(parameter.shape)
    gradients = {key: parameters[key].grad for key in names}
    weights = {key: parameters[key] for key in names}
    found = {}
    for title, run in (
        ("operator_ms", lambda: weight_importance(weights, gradients, scores=scores)),
        ("tensor_loop_ms", lambda: _loop(names, parameters, scores)),
    ):
        run()
        seconds = []
        for _ in range(_ACCUMULATE_ROUNDS):
            start = time.perf_counter()
            run()
            seconds.append(time.perf_counter() - start)
        found[title] = round(1e3 * statistics.median(seconds), 3)
    return {**found, "weights": sum(parameters[key].numel() for key in names)}


if __name__ == "__main__":
    if sys.argv[1] == "--one":
        print(json.dumps(one(sys.argv[2])))
    else:
        main(Path(sys.argv[1]))
