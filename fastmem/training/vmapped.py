"""Packs of equal networks at once on a GPU: their parameters stacked, one forward pass mapped over all of them.

``torch.func.vmap`` turns the linear layers of a pack into batched products and its convolutions into grouped ones. The
optimisers of recipes work element by element, so one of them moves the stacked parameters as many would. Models of a
membership design have unequal numbers of records: batches are filled up to the pack's largest with records of weight
zero, which batch normalisation leaves out too.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state, vmap
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils.rnn import pad_sequence

from fastmem.models.mlp import is_altered
from fastmem.training.batches import Batches
from fastmem.training.evaluate import model_dtype
from fastmem.training.job import Job, TrainedModel
from fastmem.training.packs import pack_size, train_in_packs
from fastmem.training.plain import check_batch_norm, initial_model
from fastmem.training.progress import Progress
from fastmem.training.step import make_optimizer

__all__ = ["VmappedTrainer"]

# Where the classes of networks come from that are known to mean the same when mapped. A user's own may do what a mapped
# one cannot, or draw random numbers.
_KNOWN = ("torch.nn.modules.", "torchvision.models.resnet", "fastmem.models.")


class VmappedTrainer:
    """Trains packs of fastmem's own networks on a GPU."""

    name = "vmapped"

    def supports(self, job: Job, model: nn.Module) -> str | None:
        """None for networks without dropout under a recipe without early stopping on a GPU, else why not."""
        if job.device.type == "cpu":
            return "the device is a CPU, where one model at a time is faster"
        return why_not(job, model)

    def train(self, job: Job) -> list[TrainedModel]:
        """Train them all, in packs that fit the device's memory."""
        size = pack_size(job, initial_model(job, 0).to(job.device))
        return train_in_packs(job, size, lambda pack: _train_pack(job, pack))


def why_not(job: Job, model: nn.Module) -> str | None:
    """Why a mapped training would not equal single ones, on any device; None if it would."""
    recipe = job.recipe
    if not all(type(module).__module__.startswith(_KNOWN) for module in model.modules()):
        return "the model has parts that are not fastmem's, torch's or torchvision's"
    if any(is_altered(module) for module in model.modules()):
        return "a hook or another forward is attached to the model"
    if any(_drops(module) for module in model.modules()):
        return "dropout draws from one generator for all models"
    if any(parameter.requires_grad is False for parameter in model.parameters()):
        return "some weights are frozen"
    if recipe.patience is not None or recipe.stop_at_train_accuracy is not None:
        return "models may stop early, each at its own time"
    if recipe.mixed_precision != "none":
        return "mixed precision is asked for"
    if any(isinstance(module, _BatchNorm) and not _WeightedBatchNorm.fits(module) for module in model.modules()):
        return "a batch normalisation has no weights or no running statistics"
    return None


def _drops(module: nn.Module) -> bool:
    share = module.p if isinstance(module, nn.modules.dropout._DropoutNd) else getattr(module, "dropout", 0.0)
    return isinstance(share, float) and share > 0


def _train_pack(job: Job, pack: list[int]) -> list[TrainedModel]:
    recipe = job.recipe
    models = [initial_model(job, index).train() for index in pack]
    batches = [Batches(job, index, model_dtype(models[0])) for index in pack]
    for own in batches:
        check_batch_norm(models[0], own.sizes)
    parameters, buffers = _stack(models, job.device)
    skeleton = _weighted(copy.deepcopy(models[0]).to("meta"))
    optimizer = make_optimizer(list(parameters.values()), recipe)
    rates = iter(recipe.rates(len(batches[0].sizes)))
    progress = [Progress(job, index) for index in pack]

    def loss_of(
        parameters: dict[str, Tensor], buffers: dict[str, Tensor], x: Tensor, y: Tensor, weight: Tensor
    ) -> Tensor:
        for module in skeleton.modules():
            if isinstance(module, _WeightedBatchNorm):
                module.record_weight = weight
        logits = functional_call(skeleton, (parameters, buffers), (x,))
        losses = F.cross_entropy(logits, y, label_smoothing=recipe.label_smoothing, reduction="none")
        return (losses * weight).sum()

    sizes = torch.tensor([own.sizes for own in batches], dtype=torch.float64)
    for _ in range(recipe.epochs):
        losses = []
        for step in zip(*(own.epoch() for own in batches), strict=True):
            x, y = (pad_sequence(list(parts), batch_first=True) for parts in zip(*step, strict=True))
            weight = pad_sequence([part.new_full((len(part),), 1 / len(part)) for part, _ in step], batch_first=True)
            optimizer.param_groups[0]["lr"] = next(rates)
            loss = vmap(loss_of)(parameters, buffers, x, y, weight)
            optimizer.zero_grad()
            loss.sum().backward()
            if recipe.clip_norm is not None:
                _clip(parameters, recipe.clip_norm)
            optimizer.step()
            losses.append(loss.detach())
        means = (torch.stack(losses, dim=1).double().cpu() * sizes).sum(dim=1) / sizes.sum(dim=1)
        for model, own, mean in zip(models, progress, means.tolist(), strict=True):
            own.ends(model, mean)
    return _results(job, models, progress, parameters | buffers)


class _WeightedBatchNorm(nn.Module):
    """Batch normalisation in training mode whose statistics leave out records of weight zero.

    Stands in for ``torch.nn.BatchNorm1d``, ``2d`` or ``3d``, with the same parameters and buffers.
    """

    record_weight: Tensor  # [B]: 1 / n, or 0
    num_batches_tracked: Tensor

    def __init__(self, original: _BatchNorm) -> None:
        super().__init__()
        assert original.momentum is not None  # it fits
        self.eps, self.momentum = original.eps, original.momentum
        self.weight, self.bias = original.weight, original.bias
        for name, value in original.named_buffers():
            self.register_buffer(name, value)

    @staticmethod
    def fits(module: _BatchNorm) -> bool:
        return module.affine and module.track_running_stats and module.momentum is not None

    def forward(self, x: Tensor) -> Tensor:
        shape = (1, -1, *[1] * (x.ndim - 2))
        dims = [dim for dim in range(x.ndim) if dim != 1]
        pixels = x[0, 0].numel()
        share = self.record_weight.view(-1, *[1] * (x.ndim - 1)) / pixels
        mean = (x * share).sum(dim=dims, keepdim=True)
        var = ((x - mean).square() * share).sum(dim=dims, keepdim=True)
        count = (self.record_weight > 0).sum().to(x.dtype) * pixels
        for running, now in (("running_mean", mean), ("running_var", var * (count / (count - 1)))):
            buffer = getattr(self, running)
            buffer.mul_(1 - self.momentum).add_(now.detach().flatten() * self.momentum)
        self.num_batches_tracked.add_(1)
        return (x - mean) * (var + self.eps).rsqrt() * self.weight.view(shape) + self.bias.view(shape)


def _weighted(module: nn.Module) -> nn.Module:
    """With every batch normalisation replaced."""
    for name, child in module.named_children():
        setattr(module, name, _WeightedBatchNorm(child) if isinstance(child, _BatchNorm) else _weighted(child))
    return module


def _stack(models: list[nn.Module], device: torch.device) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    parameters, buffers = stack_module_state(models)
    parameters = {name: value.detach().to(device).requires_grad_() for name, value in parameters.items()}
    return parameters, {name: value.to(device) for name, value in buffers.items()}


def _clip(parameters: dict[str, Tensor], largest: float) -> None:
    """As ``torch.nn.utils.clip_grad_norm_`` does, for each model of the pack."""
    gradients = [value.grad for value in parameters.values() if value.grad is not None]
    norms = torch.stack([gradient.flatten(1).norm(dim=1) for gradient in gradients]).norm(dim=0)
    factors = (largest / (norms + 1e-6)).clamp(max=1.0)
    for gradient in gradients:
        gradient.mul_(factors.view(-1, *[1] * (gradient.ndim - 1)))


def _results(job: Job, models: list[nn.Module], progress: list[Progress], state: dict[str, Any]) -> list[TrainedModel]:
    trained = []
    for place, (model, own) in enumerate(zip(models, progress, strict=True)):
        model.load_state_dict({name: value[place] for name, value in state.items()})
        trained.append(own.result(model.to(job.device)))
        model.to("cpu")
    return trained
