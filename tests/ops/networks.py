"""Small networks that use their parameters in every way the rules know, and the slow way to their gradients."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

BATCH = 5
losses = partial(F.cross_entropy, reduction="none")


@dataclass(frozen=True)
class Example:
    """A network in float64, a batch, and the way that its gradients should be computed."""

    model: nn.Module
    inputs: tuple[Tensor, ...]
    targets: Tensor
    way: str = "layers"

    def brute_force(self, loss_fn: Callable[[Any, Tensor], Tensor] = losses) -> dict[str, Tensor]:
        """One backward pass a sample, alone in its batch."""
        parameters = {name: p for name, p in self.model.named_parameters() if p.requires_grad}
        rows = []
        for i in range(len(self.targets)):
            output = self.model(*(x[i : i + 1] for x in self.inputs))
            loss = loss_fn(output, self.targets[i : i + 1]).sum()
            found = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True)
            rows.append(
                [torch.zeros_like(p) if g is None else g for g, p in zip(found, parameters.values(), strict=True)]
            )
        return {name: torch.stack([row[k] for row in rows]) for k, name in enumerate(parameters)}


class Encoder(nn.Module):
    """A transformer layer on tokens; ``batch_first=False`` puts the batch second, and attention folds it into time."""

    def __init__(self, batch_first: bool, norm_first: bool = False) -> None:
        super().__init__()
        self.embedding = nn.Embedding(11, 8, padding_idx=0)
        self.layer = nn.TransformerEncoderLayer(8, 2, 12, 0.0, batch_first=batch_first, norm_first=norm_first)
        self.output = nn.Linear(8, 3)
        self.batch_first = batch_first

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embedding(ids)
        return self.output(self.layer(x)[:, 0] if self.batch_first else self.layer(x.transpose(0, 1))[0])


class CrossAttention(nn.Module):
    """Attention between two sequences, whose projection is used in ranges of rows."""

    def __init__(self, same_key_value: bool) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.output = nn.Linear(8, 3)
        self.same = same_key_value

    def forward(self, query: Tensor, key: Tensor) -> Tensor:
        return self.output(self.attention(query, key, key if self.same else key + 1)[0].mean(1))


class TiedEmbedding(nn.Module):
    """One weight read as an embedding and multiplied as an output layer; one layer called twice."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.hidden = nn.Embedding(11, 8), nn.Linear(8, 8)

    def forward(self, ids: Tensor) -> Tensor:
        return F.linear(torch.tanh(self.hidden(self.hidden(self.embedding(ids)))).mean(1), self.embedding.weight)


class Frames(nn.Module):
    """Images in sequences: time is folded into the batch of a convolution, by sample or by time."""

    def __init__(self, by_time: bool) -> None:
        super().__init__()
        self.convolution, self.norm = nn.Conv2d(2, 4, 3), nn.GroupNorm(2, 4)
        self.output = nn.Linear(4, 3)
        self.by_time = by_time

    def forward(self, frames: Tensor) -> Tensor:
        batch, time = frames.shape[:2]
        x = (frames.transpose(0, 1) if self.by_time else frames).flatten(0, 1)
        x = torch.tanh(self.norm(self.convolution(x))).mean((2, 3))
        x = x.unflatten(0, (time, batch)).transpose(0, 1) if self.by_time else x.unflatten(0, (batch, time))
        return self.output(x).square().sum(1)


class TwoBranches(nn.Module):
    """A layer whose output the loss never sees, one that is called on both inputs, and two names of one weight."""

    def __init__(self) -> None:
        super().__init__()
        self.shared, self.unused, self.output = nn.Linear(4, 6), nn.Linear(6, 2), nn.Linear(6, 3)
        self.again = self.output

    def forward(self, left: Tensor, right: Tensor) -> Tensor:
        left, right = torch.tanh(self.shared(left)), torch.tanh(self.shared(right))
        self.unused(left)
        return self.output(left) + self.again(right)


class Recurrent(nn.Module):
    """No rule covers an LSTM."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm, self.output = nn.LSTM(4, 5, batch_first=True), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.output(self.lstm(x)[0][:, -1])


class OwnParameter(nn.Module):
    """A parameter multiplied by hand."""

    def __init__(self) -> None:
        super().__init__()
        self.gain, self.output = nn.Parameter(torch.ones(4)), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.output(torch.tanh(x * self.gain))


class Positions(nn.Module):
    """Position embeddings are read once for the whole batch: as many positions as samples."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens, self.places, self.output = nn.Embedding(11, 6), nn.Embedding(BATCH, 6), nn.Linear(6, 3)

    def forward(self, ids: Tensor) -> Tensor:
        return self.output(torch.tanh(self.tokens(ids) + self.places(torch.arange(ids.shape[1]))).mean(1))


class _Double(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return x @ weight.T

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor]:
        x, weight = ctx.saved_tensors
        return gradients[0] @ weight, gradients[0].T @ x


class Hidden(nn.Module):
    """A custom autograd function: its use of the weight cannot be watched."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.output = nn.Linear(4, 6, bias=False), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.output(torch.tanh(_Double.apply(x, self.inner.weight)))


def _mlp() -> nn.Module:
    return nn.Sequential(
        nn.Linear(5, 7), nn.ReLU(inplace=True), nn.Linear(7, 6, bias=False), nn.Tanh(), nn.Linear(6, 3)
    )


def _cnn() -> nn.Module:
    torch.manual_seed(1)
    model = nn.Sequential(
        nn.Conv2d(2, 4, 3, padding="same", padding_mode="reflect", dilation=2, groups=2),
        nn.GroupNorm(2, 4),
        nn.ReLU(inplace=True),
        nn.Conv2d(4, 6, 2, stride=2, padding=1),
        nn.BatchNorm2d(6),
        nn.InstanceNorm2d(6, affine=True),
        nn.Conv2d(6, 6, 2, padding="same"),
        nn.LayerNorm([4, 4]),
        nn.RMSNorm(4),
        nn.Flatten(),
        nn.Linear(96, 3),
    )
    assert isinstance(model[4].running_var, Tensor)
    model[4].running_var.uniform_(0.5, 2)
    for parameter in (model[1].weight, model[4].weight, model[5].weight, model[7].weight):
        nn.init.normal_(parameter)
    return model.eval()


def _conv1d() -> nn.Module:
    return nn.Sequential(
        nn.Conv1d(3, 4, 3, padding=1, padding_mode="circular"),
        nn.Tanh(),
        nn.Conv1d(4, 4, 2, stride=2, dilation=2, groups=4, bias=False),
        nn.Flatten(),
        nn.Linear(12, 3),
    )


def _ids() -> Tensor:
    return torch.randint(0, 11, (BATCH, BATCH))


def _normal(*shape: int) -> Tensor:
    return torch.randn(BATCH, *shape, dtype=torch.float64)


_MAKERS: dict[str, Callable[[], tuple[nn.Module, tuple[Tensor, ...], str]]] = {
    "mlp": lambda: (_mlp(), (_normal(5),), "layers"),
    "linear on sequences": lambda: (
        nn.Sequential(nn.Linear(4, 6), nn.LayerNorm(6), nn.Tanh(), nn.Flatten(), nn.Linear(18, 3)),
        (_normal(3, 4),),
        "layers",
    ),
    "convolutions and norms": lambda: (_cnn(), (_normal(2, 7, 7),), "layers"),
    "conv1d": lambda: (_conv1d(), (_normal(3, 8),), "layers"),
    "transformer": lambda: (Encoder(batch_first=True), (_ids(),), "layers"),
    "transformer, time first": lambda: (Encoder(batch_first=False, norm_first=True), (_ids(),), "layers"),
    "cross attention": lambda: (CrossAttention(True), (_normal(3, 8), _normal(4, 8)), "layers"),
    "attention with three inputs": lambda: (CrossAttention(False), (_normal(3, 8), _normal(4, 8)), "layers"),
    "tied embedding": lambda: (TiedEmbedding(), (_ids(),), "layers"),
    "frames by sample": lambda: (Frames(False), (_normal(3, 2, 5, 5),), "layers"),
    "frames by time": lambda: (Frames(True), (_normal(3, 2, 5, 5),), "layers"),
    "two branches": lambda: (TwoBranches(), (_normal(4), _normal(4)), "layers"),
    "own parameter": lambda: (OwnParameter(), (_normal(4),), "torch.func"),
    "positions": lambda: (Positions(), (_ids(),), "torch.func"),
    "lstm": lambda: (Recurrent(), (_normal(6, 4),), "loop"),
    "custom function": lambda: (Hidden(), (_normal(4),), "loop"),
}

NAMES = tuple(_MAKERS)
COVERED = tuple(name for name in NAMES if name not in ("own parameter", "positions", "lstm", "custom function"))


def example(name: str, dtype: torch.dtype = torch.float64) -> Example:
    """The example of that name, always the same."""
    torch.manual_seed(0)
    model, inputs, way = _MAKERS[name]()
    inputs = tuple(x.to(dtype) if x.is_floating_point() else x for x in inputs)
    return Example(model.to(dtype), inputs, torch.randint(0, 3, (BATCH,)), way)
