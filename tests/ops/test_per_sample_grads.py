"""Per-sample gradients: each sample alone is the oracle, in float64."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from fastmem.errors import InputError
from fastmem.ops import explain
from fastmem.ops.per_sample_grads import per_sample_grads

from .networks import BATCH, NAMES, Encoder, example, losses
from .strategies import PROPERTY


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor], tolerance: float = 1e-11) -> None:
    assert list(found) == list(expected)
    for name, value in expected.items():
        torch.testing.assert_close(
            found[name], value, rtol=tolerance, atol=tolerance, msg=lambda text, name=name: f"{name}: {text}"
        )


@pytest.mark.parametrize("name", NAMES)
def test_every_sample_by_itself(name: str) -> None:
    case = example(name)
    arguments = (case.model, losses, case.inputs, case.targets)
    assert explain("per_sample_grads", *arguments).chosen == case.way
    assert_same(per_sample_grads(*arguments), case.brute_force())


def test_the_oracle_notices_a_wrong_rule(monkeypatch: pytest.MonkeyPatch) -> None:
    from fastmem.ops._layers import capture, embedding

    case = example("transformer")
    keep = embedding.Rule(embedding.RULE.name, embedding.RULE.arguments, _with_padding, embedding.RULE.bias)
    monkeypatch.setitem(capture.RULES, torch.embedding, keep)
    assert (case.inputs[0] == 0).any()
    with pytest.raises(AssertionError, match=r"embedding\.weight"):
        assert_same(per_sample_grads(case.model, losses, case.inputs, case.targets), case.brute_force())


def _with_padding(x: Tensor, delta: Tensor, arguments: Any) -> Any:
    from fastmem.ops._layers.embedding import Rows

    return Rows(x.flatten(1), delta.flatten(1, -2), 11)


@PROPERTY
@given(
    channels=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    groups=st.integers(1, 3),
    kernel=st.tuples(st.integers(1, 3), st.integers(1, 4)),
    stride=st.tuples(st.integers(1, 3), st.integers(1, 2)),
    padding=st.one_of(st.tuples(st.integers(0, 2), st.integers(0, 2)), st.sampled_from(["same", "valid"])),
    mode=st.sampled_from(["zeros", "reflect", "replicate", "circular"]),
    dilation=st.tuples(st.integers(1, 2), st.integers(1, 2)),
    one_dimension=st.booleans(),
)
def test_any_convolution(channels, groups, kernel, stride, padding, mode, dilation, one_dimension) -> None:
    torch.manual_seed(0)
    if padding == "same":
        stride = (1, 1)
    size = (7, 9)
    if one_dimension:
        kernel, stride, dilation, size = kernel[:1], stride[:1], dilation[:1], size[:1]
        padding = padding if isinstance(padding, str) else padding[:1]
    layer = (nn.Conv1d if one_dimension else nn.Conv2d)(
        channels[0] * groups, channels[1] * groups, kernel, stride, padding, dilation, groups, padding_mode=mode
    ).double()
    x = torch.randn(3, channels[0] * groups, *size, dtype=torch.float64)
    projection = torch.randn(layer(x[:1]).shape, dtype=torch.float64)

    def loss_fn(output: Tensor, target: Tensor) -> Tensor:
        return (output.sin() * projection).flatten(1).sum(1) * target

    targets = torch.randn(3, dtype=torch.float64)
    found = per_sample_grads(layer, loss_fn, x, targets)
    for i in range(3):
        loss = loss_fn(layer(x[i : i + 1]), targets[i : i + 1]).sum()
        alone = torch.autograd.grad(loss, list(layer.parameters()))
        for gradient, expected in zip(found.values(), alone, strict=True):
            torch.testing.assert_close(gradient[i], expected, rtol=1e-10, atol=1e-11)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", ["mlp", "transformer", "conv1d"])
def test_half_precision(name: str, dtype: torch.dtype) -> None:
    case, exact = example(name, dtype), example(name)
    exact.model.load_state_dict({key: value.double() for key, value in case.model.state_dict().items()})
    found = per_sample_grads(case.model, losses, case.inputs, case.targets)
    for parameter, (key, expected) in zip(case.model.parameters(), exact.brute_force().items(), strict=True):
        assert found[key].dtype is parameter.dtype
        error = (found[key].double() - expected).abs().max() / expected.abs().max()
        assert error < (0.02 if dtype is torch.float16 else 0.1), key


def test_autocast() -> None:
    case = example("mlp", torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        found = per_sample_grads(case.model, losses, case.inputs, case.targets)
    for name, expected in case.brute_force().items():
        assert found[name].dtype is torch.float32
        torch.testing.assert_close(found[name], expected, rtol=0.1, atol=0.05)


def test_channels_last() -> None:
    case = example("convolutions and norms")
    expected = case.brute_force()
    model = case.model.to(memory_format=torch.channels_last)
    x = case.inputs[0].to(memory_format=torch.channels_last)
    assert_same(per_sample_grads(model, losses, x, case.targets), expected)


def test_frozen_parameters_and_inputs_that_require_gradients() -> None:
    case = example("mlp")
    expected = case.brute_force()
    case.model[0].weight.requires_grad_(False)
    case.model[4].bias.requires_grad_(False)
    x = case.inputs[0].requires_grad_()
    found = per_sample_grads(case.model, losses, x, case.targets)
    del expected["0.weight"], expected["4.bias"]
    assert_same(found, expected)
    assert x.grad is None
    assert all(parameter.grad is None for parameter in case.model.parameters())


@pytest.mark.parametrize("name", ["mlp", "lstm"])
def test_an_empty_batch(name: str) -> None:
    case = example(name)
    found = per_sample_grads(case.model, losses, case.inputs[0][:0], case.targets[:0])
    assert {key: value.shape for key, value in found.items()} == {
        key: (0, *value.shape) for key, value in case.model.named_parameters()
    }


@pytest.mark.parametrize("name", ["mlp", "transformer, time first", "frames by time", "own parameter"])
@pytest.mark.parametrize("batch", [1, 2, 3])
def test_batches_as_small_as_the_probe(name: str, batch: int) -> None:
    case = example(name)
    expected = {key: value[:batch] for key, value in case.brute_force().items()}
    found = per_sample_grads(case.model, losses, tuple(x[:batch] for x in case.inputs), case.targets[:batch])
    assert_same(found, expected)


def test_without_gradients_switched_on_and_compiled() -> None:
    case = example("mlp")
    expected = case.brute_force()
    with torch.no_grad():
        found = per_sample_grads(torch.compile(case.model), losses, case.inputs, case.targets)
    assert_same({name.removeprefix("_orig_mod."): value for name, value in found.items()}, expected)


def test_checkpointed_parts() -> None:
    from torch.utils.checkpoint import checkpoint

    case = example("mlp")
    inner = case.model[0]

    class Checkpointed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner, self.output = inner, nn.Linear(7, 3).double()

        def forward(self, x: Tensor) -> Tensor:
            return self.output(torch.tanh(checkpoint(self.inner, x, use_reentrant=False)))

    checked = type(case)(Checkpointed(), case.inputs, case.targets)
    assert_same(per_sample_grads(checked.model, losses, case.inputs, case.targets), checked.brute_force())


def test_scripted_models_go_one_by_one() -> None:
    case = example("mlp")
    scripted = torch.jit.trace(case.model, case.inputs)
    found = per_sample_grads(scripted, losses, case.inputs, case.targets)
    assert_same(found, case.brute_force())


def test_nothing_is_left_behind() -> None:
    """The probe and the batch leave random numbers, buffers and the model itself as a single forward pass would."""

    class Counting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.output = nn.Linear(4, 3)
            self.register_buffer("calls", torch.zeros(()))

        def forward(self, x: Tensor) -> Tensor:
            self.calls.add_(1)
            return self.output(F.dropout(x))

    model, x, y = Counting(), torch.randn(BATCH, 4), torch.zeros(BATCH, dtype=torch.int64)
    before = set(model.__dict__)
    torch.manual_seed(3)
    found = per_sample_grads(model, losses, x, y)["output.bias"]
    assert model.calls == 1
    assert set(model.__dict__) == before
    torch.manual_seed(3)
    output = model(x)
    torch.testing.assert_close(found, (output.softmax(1) - F.one_hot(y, 3)).detach())


def test_after_an_error_the_model_is_as_before() -> None:
    case = example("mlp")
    expected = case.brute_force()

    def broken(output: Tensor, target: Tensor) -> Tensor:
        raise KeyError("a bug of the caller's")

    with pytest.raises(KeyError, match="a bug"):
        per_sample_grads(case.model, broken, case.inputs, case.targets)
    assert_same(per_sample_grads(case.model, losses, case.inputs, case.targets), expected)


def test_a_loss_that_reaches_no_parameter() -> None:
    case = example("mlp")
    found = per_sample_grads(case.model, lambda output, target: target * 1.0, case.inputs, case.targets)
    assert all(not value.any() for value in found.values())


class _Centred(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(5, 3).double()

    def forward(self, x: Tensor) -> Tensor:
        x = self.inner(x)
        return x - x.mean(0)


def _contrastive(output: Tensor, target: Tensor) -> Tensor:
    return F.cross_entropy(output @ output.T, torch.arange(len(output)), reduction="none")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"loss_fn": F.cross_entropy}, "loss_fn: returned shape .* reduced over the batch; use reduction='none'"),
        ({"loss_fn": lambda o, t: losses(o, t)[:, None]}, r"loss_fn: returned shape \[\d, 1\]"),
        ({"loss_fn": lambda o, t: None}, "loss_fn: returned NoneType"),
        ({"loss_fn": lambda o, t: losses(o - o.mean(0), t)}, "loss_fn: the loss of one sample depends on the outputs"),
        ({"loss_fn": _contrastive}, "loss_fn: the loss of one sample depends on the outputs"),
        ({"loss_fn": "mean"}, "loss_fn: got str"),
        ({"model": _Centred()}, "model: the loss of one sample depends on other samples"),
        ({"model": lambda x: x}, "model: got function"),
        ({"model": nn.ReLU()}, "model: has no parameter"),
        ({"model": nn.Sequential(nn.Linear(5, 3), nn.BatchNorm1d(3)).double()}, "BatchNorm1d '1' .*model.eval()"),
        (
            {"model": nn.Sequential(nn.Linear(5, 3), nn.BatchNorm1d(3, track_running_stats=False)).eval()},
            "BatchNorm1d '1' .track_running_stats=False",
        ),
        ({"targets": torch.zeros(3, dtype=torch.int64)}, "targets: has 3 samples where inputs have 5"),
        ({"inputs": torch.tensor(1.0)}, "inputs: has a tensor without dimensions"),
        ({"inputs": (), "targets": 1}, "inputs: hold no tensor"),
    ],
)
def test_bad_input_is_named(change: dict[str, Any], message: str) -> None:
    case = example("mlp")
    arguments = {"model": case.model, "loss_fn": losses, "inputs": case.inputs, "targets": case.targets, **change}
    with pytest.raises(InputError, match=message):
        per_sample_grads(**arguments)


def test_functional_batch_norm_is_refused_too() -> None:
    class Functional(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Linear(5, 3).double()

        def forward(self, x: Tensor) -> Tensor:
            return F.batch_norm(self.inner(x), None, None, training=True)

    case = example("mlp")
    with pytest.raises(InputError, match="statistics of the batch"):
        per_sample_grads(Functional(), losses, case.inputs, case.targets)


def test_explain_says_why() -> None:
    def said(name: str) -> str:
        case = example(name)
        return str(explain("per_sample_grads", case.model, losses, case.inputs, case.targets))

    assert "-> layers      runs: 3 calls, all covered" in said("mlp")
    assert "'gain' is used by mul, for which there is no rule" in said("own parameter")
    assert "'places.weight' is called once for the whole batch" in said("positions")
    assert "'lstm.weight_ih_l0' is used by lstm" in said("lstm")
    assert "'inner.weight' reaches the loss by a way that cannot be watched" in said("custom function")
    assert "vmap(grad)" in str(explain("per_sample_grads"))


def test_copies_of_a_model_do_not_meet() -> None:
    """Parameters are told by identity: a copy within the loss function is another model."""
    case = example("mlp")
    teacher = copy.deepcopy(case.model)
    x = case.inputs[0]

    def distil(output: Tensor, target: Tensor) -> Tensor:
        return (output - teacher(target)).square().sum(1)

    found = per_sample_grads(case.model, distil, x, x)
    rows = []
    for i in range(BATCH):
        loss = distil(case.model(x[i : i + 1]), x[i : i + 1]).sum()
        rows.append(torch.autograd.grad(loss, list(case.model.parameters())))
    assert_same(found, {n: torch.stack([r[k] for r in rows]) for k, (n, _) in enumerate(case.model.named_parameters())})


def test_a_loss_function_that_uses_the_parameters_itself() -> None:
    """torch.func would give the model other parameters than the loss function sees."""
    case = example("mlp")

    def penalised(output: Tensor, target: Tensor) -> Tensor:
        return losses(output, target) + (target + 1) * case.model[0].weight.square().sum()

    arguments = (case.model, penalised, case.inputs, case.targets)
    assert explain("per_sample_grads", *arguments).chosen == "loop"
    assert_same(per_sample_grads(*arguments), case.brute_force(penalised))

    def twice(output: Tensor, target: Tensor) -> Tensor:
        return losses(output, target) + losses(case.model(torch.cos(case.inputs[0][: len(output)])), target)

    assert explain("per_sample_grads", case.model, twice, case.inputs, case.targets).chosen == "layers"
    found = per_sample_grads(case.model, twice, case.inputs, case.targets)

    class Both(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = case.model

        def forward(self, x: Tensor) -> Tensor:
            return torch.stack([self.inner(x), self.inner(torch.cos(x))], 1)

    def both(output: Tensor, target: Tensor) -> Tensor:
        return losses(output[:, 0], target) + losses(output[:, 1], target)

    expected = type(case)(Both(), case.inputs, case.targets).brute_force(both)
    assert_same(found, {name.removeprefix("inner."): value for name, value in expected.items()})


def test_an_encoder_in_training_mode_with_dropout_runs() -> None:
    torch.manual_seed(0)
    model = Encoder(batch_first=True)
    model.layer.dropout.p = model.layer.dropout1.p = 0.5
    found = per_sample_grads(model, losses, torch.randint(1, 11, (BATCH, 4)), torch.zeros(BATCH, dtype=torch.int64))
    assert all(value.isfinite().all() for value in found.values())
