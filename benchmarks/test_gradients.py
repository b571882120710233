"""Sums and norms of per-sample gradients: the whole training step with them, against a plain one and named peers.

A step is forward, backward and statistics. Peers are measured where they are installed (extra ``bench``): Opacus
materialises the gradients by hooks, or by torch.func with ``functorch``; BackPACK's SumGradSquared gives the sum of
squares only. Every row notes by how much one step of its contestant raised the process's peak memory, measured in a
process of its own.
"""

from __future__ import annotations

import importlib.metadata
import json
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from benchmarks.cases import Case, Contestant
from benchmarks.machine import peak_memory
from benchmarks.timing import measure
from fastmem.compat import import_torchvision
from fastmem.models import build_model
from fastmem.ops.grad_stats import grad_stats

_losses = partial(F.cross_entropy, reduction="none")

Step = Callable[[Tensor, Tensor], None]


def mlp() -> nn.Module:
    """784-512-256-10."""
    return nn.Sequential(nn.Linear(784, 512), nn.ReLU(), nn.Linear(512, 256), nn.ReLU(), nn.Linear(256, 10))


def two_convolutions(channels: int) -> nn.Module:
    """Two 3x3 convolutions of equal width."""
    return nn.Sequential(
        nn.Conv2d(channels, channels, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(channels, channels, 3, padding=1),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(channels, 10),
    )


def cnn() -> nn.Module:
    """The two-convolution network of Salem et al. as plain modules, which every peer takes."""
    return nn.Sequential(
        nn.Conv2d(3, 32, 5, padding=2),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(32, 32, 5, padding=2),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(2048, 128),
        nn.ReLU(),
        nn.Linear(128, 10),
    )


def resnet() -> nn.Module:
    """ResNet-18 for small images, its batch normalisations replaced by group normalisations."""
    model = build_model("resnet18", (3, 32, 32), 10, seed=0)
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.BatchNorm2d):
                setattr(parent, name, nn.GroupNorm(32, child.num_features))
            if isinstance(child, nn.ReLU):
                setattr(parent, name, nn.ReLU())  # Opacus' hooks take nothing that works in place
        if isinstance(parent, _block_type()):
            parent.forward = partial(_residual, parent)
    return model


def _block_type() -> type[nn.Module]:
    return import_torchvision().models.resnet.BasicBlock


def _residual(block: Any, x: Tensor) -> Tensor:
    """The block's forward pass, its sum not in place."""
    out = block.bn2(block.conv2(block.relu(block.bn1(block.conv1(x)))))
    return block.relu(out + (x if block.downsample is None else block.downsample(x)))


#: Name, network, shape of a batch, statistics.
NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], tuple[str, ...]]] = {
    "mlp": (mlp, (512, 784), ("norm", "sum_sq")),
    "cnn": (cnn, (256, 3, 32, 32), ("sum_sq", "sum_abs")),
    "conv256": (partial(two_convolutions, 256), (64, 256, 8, 8), ("sum_sq", "sum_abs")),
    "conv64": (partial(two_convolutions, 64), (64, 64, 32, 32), ("sum_sq", "sum_abs")),
    "resnet18": (resnet, (64, 3, 32, 32), ("sum_sq", "sum_abs")),
}
_CUDA_BATCH = {"resnet18": 1024}


def plain(model: nn.Module, stats: tuple[str, ...]) -> Step:
    """Forward and backward of the mean loss."""

    def step(x: Tensor, y: Tensor) -> None:
        model.zero_grad(set_to_none=True)
        F.cross_entropy(model(x), y).backward()

    return step


def fastmem_step(model: nn.Module, stats: tuple[str, ...]) -> Step:
    """Forward, backward and statistics by :func:`fastmem.grad_stats`."""
    return lambda x, y: grad_stats(model, _losses, x, y, stats) and None


def _reduce(gradients: list[Tensor], stats: tuple[str, ...]) -> None:
    """The statistics of gradients that are held."""
    if "norm" in stats:
        torch.stack([g.flatten(1).square().sum(1) for g in gradients]).sum(0).sqrt()
    if "sum_sq" in stats:
        _ = [g.square().sum(0) for g in gradients]
    if "sum_abs" in stats:
        _ = [g.abs().sum(0) for g in gradients]


def vmap_grad(model: nn.Module, stats: tuple[str, ...]) -> Step:
    """torch.func, materialising."""
    parameters = {name: parameter.detach() for name, parameter in model.named_parameters()}

    def loss(values: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(functional_call(model, values, (x[None],)), y[None])

    gradients = vmap(grad(loss), in_dims=(None, 0, 0))
    return lambda x, y: _reduce(list(gradients(parameters, x, y).values()), stats)


def opacus(mode: str, model: nn.Module, stats: tuple[str, ...]) -> Step:
    """Opacus, materialising by hooks, by functorch or by expanded weights ("ew")."""
    from opacus.grad_sample import wrap_model  # type: ignore[import-not-found]

    wrapped: Any = wrap_model(model, grad_sample_mode=mode, loss_reduction="sum", batch_first=True)

    def step(x: Tensor, y: Tensor) -> None:
        F.cross_entropy(wrapped(x), y, reduction="sum").backward()
        parameters: list[Any] = list(model.parameters())
        _reduce([parameter.grad_sample for parameter in parameters], stats)
        for parameter in parameters:
            parameter.grad_sample = parameter.grad = None

    return step


def backpack(model: nn.Module, stats: tuple[str, ...]) -> Step:
    """BackPACK: the sum of squares, and the squared norms where they are asked for (but not the sum of |g|)."""
    from backpack import backpack as extended  # type: ignore[import-not-found]
    from backpack import extend  # type: ignore[import-not-found]
    from backpack.extensions import BatchL2Grad, SumGradSquared  # type: ignore[import-not-found]

    network, criterion = extend(model), extend(nn.CrossEntropyLoss(reduction="sum"))
    extensions = [SumGradSquared(), *([BatchL2Grad()] if "norm" in stats else [])]

    def step(x: Tensor, y: Tensor) -> None:
        model.zero_grad(set_to_none=True)
        with extended(*extensions):
            criterion(network(x), y).backward()

    return step


#: Name, step, package, networks it does not take.
WAYS: dict[str, tuple[Callable[[nn.Module, tuple[str, ...]], Step], str | None, tuple[str, ...]]] = {
    "plain step": (plain, None, ()),
    "fastmem": (fastmem_step, None, ()),
    "vmap(grad)": (vmap_grad, None, ("cnn", "conv256", "conv64", "resnet18")),
    "Opacus hooks": (partial(opacus, "hooks"), "opacus", ()),
    "Opacus functorch": (partial(opacus, "functorch"), "opacus", ("mlp", "resnet18")),
    "Opacus ew": (partial(opacus, "ew"), "opacus", ("mlp", "resnet18")),
    "BackPACK SumGradSquared": (backpack, "backpack-for-pytorch", ("resnet18",)),
}


def _batch(network: str, device: str) -> tuple[Tensor, Tensor]:
    shape = NETWORKS[network][1]
    shape = (_CUDA_BATCH.get(network, shape[0]) if device == "cuda" else shape[0], *shape[1:])
    generator = torch.Generator(device).manual_seed(0)
    x = torch.randn(shape, generator=generator, device=device)
    return x, torch.randint(0, 10, shape[:1], generator=generator, device=device)


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _contestant(network: str, way: str, device: str) -> Contestant:
    make, package, refused = WAYS[way]
    version = _version(package) if package else ""
    reason = None if version is not None else f"{package} is not installed"
    if network in refused:
        reason = "does not take this network, or would take minutes"
    step: list[Step] = []

    def run(x: Tensor, y: Tensor) -> None:
        if not step:  # each contestant has a network of its own: hooks stay on it
            torch.manual_seed(0)
            build, _, stats = NETWORKS[network]
            step.append(make(build().to(device), stats))
        step[0](x, y)

    return Contestant(f"{way} {version}".strip(), run, ours=way == "fastmem", reason_absent=reason)


def cases(device: str) -> list[Case]:
    """Every case of this file on ``device``."""
    return [
        Case(
            name=f"grad_stats {network}".replace(" ", "_"),
            operator=f"grad_stats {'+'.join(stats)}",
            shape=f"{network} {shape}",
            dtype="float32",
            bytes=0,
            inputs=partial(_batch, network, device),
            contestants=tuple(_contestant(network, way, device) for way in WAYS),
        )
        for network, (_, shape, stats) in NETWORKS.items()
    ]


def test_gradients(
    benchmark: Any, case: Case, contestant: Contestant, describe: None, request: Any, peaks: dict[str, int]
) -> None:
    """Time one contestant, and note its peak memory."""
    device = str(request.config.getoption("--bench-device"))
    network = case.name.removeprefix("grad_stats_")
    way = next(way for way in sorted(WAYS, key=len, reverse=True) if contestant.name.startswith(way))
    key = f"{network} {way}"
    if key not in peaks:
        peaks[key] = _peak_of(network, way, device)
    benchmark.extra_info["peak_growth"] = peaks[key]
    measure(benchmark, contestant.run, case.inputs(), request.config.getoption("--bench-seconds"))


@pytest.fixture(scope="session")
def peaks() -> dict[str, int]:
    """Bytes by which one step raised the peak, by network and contestant."""
    return {}


def _peak_of(network: str, way: str, device: str) -> int:
    """Measure in a fresh process, in which nothing has been allocated before."""
    command = [sys.executable, "-m", "benchmarks.test_gradients", network, way, device]
    return json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()[-1])


def _print_peak(network: str, way: str, device: str) -> None:
    contestant = _contestant(network, way, device)
    x, y = _batch(network, device)
    contestant.run(x[:2], y[:2])  # libraries load, buffers of the network's own size
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        contestant.run(x, y)
        print(torch.cuda.max_memory_allocated() - before)
        return
    before = peak_memory()
    contestant.run(x, y)
    print(peak_memory() - before)


if __name__ == "__main__":
    _print_peak(*sys.argv[1:4])
