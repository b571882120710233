"""Statistics of per-sample gradients against the gradients themselves, which brute force gives one by one."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from fastmem.errors import InputError, UnknownNameError
from fastmem.ops import explain
from fastmem.ops._layers import forms, linear
from fastmem.ops._layers.convolution import Geometry, Patches
from fastmem.ops._layers.embedding import Rows
from fastmem.ops._layers.linear import Outer, ghost_norm_sq
from fastmem.ops.grad_stats import STATS, GradStats, grad_stats
from fastmem.ops.top_fraction import top_fraction
from fastmem.ops.weight_importance import weight_importance

from .networks import BATCH, COVERED, NAMES, Example, example, losses
from .strategies import PROPERTY


def assert_close(found: Tensor, expected: Tensor, tolerance: float = 1e-10) -> None:
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)


def assert_statistics(found: GradStats, expected: dict[str, Tensor], tolerance: float = 1e-10) -> None:
    flat = torch.cat([value.flatten(1) for value in expected.values()], 1)
    assert_close(found.norm, flat.norm(dim=1), tolerance)
    for name, value in expected.items():
        assert_close(found.sum[name], value.sum(0), tolerance)
        assert_close(found.sum_sq[name], value.square().sum(0), tolerance)
        assert_close(found.sum_abs[name], value.abs().sum(0), tolerance)


@pytest.mark.parametrize("chunk_bytes", [1, forms.CHUNK_BYTES])
@pytest.mark.parametrize("name", NAMES)
def test_every_statistic(name: str, chunk_bytes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("forms", "convolution", "functional"):
        monkeypatch.setattr(f"fastmem.ops._layers.{module}.CHUNK_BYTES", chunk_bytes)
    case = example(name)
    expected = case.brute_force()
    weights = torch.randn(BATCH, dtype=torch.float64)
    direction = {key: torch.randn_like(value[0]) for key, value in expected.items()}
    found = grad_stats(case.model, losses, case.inputs, case.targets, STATS, weights, direction)
    assert_statistics(found, expected)
    flat = torch.cat([value.flatten(1) for value in expected.values()], 1)
    assert_close(found.gram, flat @ flat.T)
    assert_close(found.dot, flat @ torch.cat([value.flatten() for value in direction.values()]))
    for key, value in expected.items():
        assert_close(found.weighted_sum[key], torch.tensordot(weights, value, 1))
    assert list(found.sum) == list(expected)
    assert found.num_samples == BATCH
    # Alone, a norm may take another way.
    assert_close(grad_stats(case.model, losses, case.inputs, case.targets, ("norm",)).norm, flat.norm(dim=1))


@pytest.mark.parametrize("name", COVERED)
def test_ones_give_the_gradient_of_a_backward_pass(name: str) -> None:
    case = example(name)
    found = grad_stats(case.model, losses, case.inputs, case.targets, ("sum",), torch.ones(BATCH))
    losses(case.model(*case.inputs), case.targets).sum().backward()
    for key, parameter in case.model.named_parameters():
        expected = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        assert_close(found.weighted_sum[key], expected)
        assert_close(found.sum[key], expected)


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("name", COVERED)
def test_around_a_training_step(name: str, reduction: Any) -> None:
    case = example(name)
    found = GradStats(case.model, ("norm", "sum", "sum_sq", "sum_abs"), reduction=reduction)
    with found:
        F.cross_entropy(case.model(*case.inputs), case.targets, reduction=reduction).backward()
    assert_statistics(found, case.brute_force())
    gradients = {key: parameter.grad for key, parameter in case.model.named_parameters()}
    case.model.zero_grad()
    F.cross_entropy(case.model(*case.inputs), case.targets, reduction=reduction).backward()
    for key, parameter in case.model.named_parameters():
        if parameter.grad is not None:
            assert gradients[key] is not None
            assert_close(gradients[key], parameter.grad)
    assert "forward" not in case.model.__dict__


def test_training_goes_on_as_without() -> None:
    """Three steps of SGD with the statistics, and three without, end at the same weights."""
    watched, plain = example("convolutions and norms"), example("convolutions and norms")
    found = GradStats(watched.model, ("norm", "sum_sq"))
    norms = []
    for case in (watched, plain):
        optimizer = torch.optim.SGD(case.model.parameters(), lr=0.1, momentum=0.9)
        for _ in range(3):
            optimizer.zero_grad()
            if case is watched:
                norms.append(torch.cat([v.flatten(1) for v in case.brute_force().values()], 1).norm(dim=1))
                with found:
                    F.cross_entropy(case.model(*case.inputs), case.targets).backward()
                    optimizer.step()
            else:
                F.cross_entropy(case.model(*case.inputs), case.targets).backward()
                optimizer.step()
    for left, right in zip(watched.model.parameters(), plain.model.parameters(), strict=True):
        assert_close(left, right)
    assert found.num_samples == 3 * BATCH
    assert_close(found.norm, torch.cat(norms))


def test_two_calls_in_one_step_are_one_gradient() -> None:
    case = example("mlp")
    x, other = case.inputs[0], case.inputs[0].flip(0)
    found = GradStats(case.model, ("norm",), reduction="sum")
    with found:
        (losses(case.model(x), case.targets) + losses(case.model(other), case.targets)).sum().backward()

    class Both(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = case.model

        def forward(self, left: Tensor, right: Tensor) -> Tensor:
            return torch.stack([self.inner(left), self.inner(right)], 1)

    def both(output: Tensor, target: Tensor) -> Tensor:
        return losses(output[:, 0], target) + losses(output[:, 1], target)

    expected = Example(Both(), (x, other), case.targets).brute_force(both)
    assert_close(found.norm, torch.cat([value.flatten(1) for value in expected.values()], 1).norm(dim=1))


def test_over_a_loader() -> None:
    case = example("transformer")
    data = torch.utils.data.TensorDataset(case.inputs[0], case.targets)
    loader = torch.utils.data.DataLoader(data, batch_size=2)
    found = GradStats(case.model, ("norm", "sum", "sum_sq", "sum_abs")).update_all(losses, loader)
    assert found.num_samples == BATCH
    assert_statistics(found, case.brute_force())


def test_the_order_of_samples_and_the_number_of_threads() -> None:
    case = example("convolutions and norms", torch.float32)
    first = grad_stats(case.model, losses, case.inputs, case.targets)
    order = torch.tensor([3, 0, 4, 1, 2])
    before = torch.get_num_threads()
    torch.set_num_threads(2 if before == 1 else 1)
    try:
        second = grad_stats(case.model, losses, tuple(x[order] for x in case.inputs), case.targets[order])
    finally:
        torch.set_num_threads(before)
    torch.testing.assert_close(second.norm, first.norm[order], rtol=1e-6, atol=1e-6)
    for stat in ("sum_sq", "sum_abs"):
        for key, value in getattr(first, stat).items():
            error = (getattr(second, stat)[key] - value).abs().max() / value.abs().max()
            assert error <= 1e-6, (stat, key)


def test_half_precision_accumulates_in_float32() -> None:
    """In float16 the squares of small gradients are zero, and those of large ones infinite."""
    model = nn.Linear(3, 2).half()
    x = torch.full((4, 3), 300.0).half()
    found = grad_stats(model, lambda output, target: output.sum(1), x, torch.zeros(4))
    assert found.sum_sq["weight"].dtype is torch.float32
    torch.testing.assert_close(found.sum_sq["weight"], torch.full((2, 3), 4 * 300.0**2))
    small = grad_stats(model, lambda output, target: output.sum(1) * 1e-4, x / 300, torch.zeros(4))
    assert (small.sum_sq["weight"] > 3e-8).all()


def test_a_batch_of_nothing() -> None:
    case = example("mlp")
    found = grad_stats(case.model, losses, case.inputs[0][:0], case.targets[:0], STATS, torch.ones(0))
    assert found.norm.shape == (0,)
    assert found.gram.shape == (0, 0)
    for key, parameter in case.model.named_parameters():
        assert torch.equal(found.sum_sq[key], torch.zeros_like(parameter))
        assert torch.equal(found.weighted_sum[key], torch.zeros_like(parameter))
    with GradStats(case.model, ("norm",)) as watched:
        case.model(case.inputs[0][:0]).sum().backward()
    assert watched.num_samples == 0


def test_frozen_parameters_count_for_nothing() -> None:
    case = example("mlp")
    expected = case.brute_force()
    case.model[2].weight.requires_grad_(False)
    case.model[0].bias.requires_grad_(False)
    del expected["2.weight"], expected["0.bias"]
    found = grad_stats(case.model, losses, case.inputs, case.targets, ("norm", "sum", "sum_sq", "sum_abs"))
    assert list(found.sum) == list(expected)
    assert_statistics(found, expected)


def test_the_weight_gradient_is_not_computed() -> None:
    """The whole step multiplies no more than a plain one: the statistics take the weight gradients' place."""
    from torch.utils.flop_counter import FlopCounterMode

    model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64))
    x, y = torch.randn(200, 64), torch.zeros(200, dtype=torch.int64)
    with FlopCounterMode(display=False) as plain:
        F.cross_entropy(model(x), y).backward()
    with FlopCounterMode(display=False) as ours:
        grad_stats(model, losses, x, y, ("norm", "sum_sq"))
    assert ours.get_total_flops() < 1.05 * plain.get_total_flops()


@PROPERTY
@given(batch=st.integers(1, 4), positions=st.integers(1, 12), rows=st.integers(1, 6), columns=st.integers(1, 6))
def test_norms_from_gram_matrices_of_positions(batch: int, positions: int, rows: int, columns: int) -> None:
    torch.manual_seed(0)
    a = torch.randn(batch, positions, columns, dtype=torch.float64)
    delta = torch.randn(batch, positions, rows, dtype=torch.float64)
    expected = torch.einsum("bto,btk->bok", delta, a).square().sum((1, 2))
    assert_close(ghost_norm_sq(a, delta), expected)
    assert linear.ghost_is_cheaper(positions, rows, columns) == (
        2 * positions**2 * (rows + columns) < 2 * positions * rows * columns
    )
    assert_close(Outer(a, delta).sums({"norm_sq"})["norm_sq"], expected)


def test_convolution_norms_by_both_ways() -> None:
    torch.manual_seed(0)
    shape, geometry = torch.Size((8, 4, 3, 3)), Geometry((3, 3), (1, 2), (1, 0), (1, 1), 2)
    for size in ((3, 3), (9, 9)):
        a = torch.randn(3, 8, *size, dtype=torch.float64)
        delta = torch.randn_like(F.conv2d(a, torch.zeros(shape, dtype=torch.float64), None, (1, 2), (1, 0), 1, 2))
        form = Patches(a, delta, geometry, shape)
        expected = form.grads(0, 3).flatten(1).square().sum(1)
        assert_close(form.sums({"norm_sq"})["norm_sq"], expected)
        assert_close(form._ghost_norm_sq(), expected)


def test_a_square_of_sums_is_not_a_sum_of_squares() -> None:
    """Why repeated uses are joined first: adding their statistics is wrong."""
    torch.manual_seed(0)
    parts = [Rows(torch.randint(0, 4, (3, 2)), torch.randn(3, 2, 5, dtype=torch.float64), 4) for _ in range(2)]
    whole = Rows.joined(parts)
    expected = (parts[0].grads(0, 3) + parts[1].grads(0, 3)).square().sum(0)
    assert_close(whole.sums({"sum_sq"})["sum_sq"], expected)
    wrong = parts[0].sums({"sum_sq"})["sum_sq"] + parts[1].sums({"sum_sq"})["sum_sq"]
    assert not torch.allclose(wrong, expected)


@pytest.mark.parametrize("name", ["convolutions and norms", "transformer", "own parameter"])
def test_importance_sample_by_sample(name: str) -> None:
    case = example(name)
    found = grad_stats(case.model, losses, case.inputs, case.targets)
    scores = {kind: found.importance(kind) for kind in ("abs_gw", "sq_gw", "abs_g", "sq_g")}
    weights = dict(case.model.named_parameters())
    for key, g in case.brute_force().items():
        pulls = g * weights[key].detach()
        assert_close(scores["abs_gw"][key], pulls.abs().sum(0))
        assert_close(scores["sq_gw"][key], pulls.square().sum(0))
        assert_close(scores["abs_g"][key], g.abs().sum(0))
        assert_close(scores["sq_g"][key], g.square().sum(0))
    assert top_fraction(scores["abs_gw"], 0.01).count >= 1
    some = next(iter(weights))
    scores["abs_g"][some].zero_()  # the caller's own
    assert found.sum_abs[some].abs().max() > 0
    with pytest.raises(UnknownNameError, match="kind"):
        found.importance("gw")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="add 'sum_abs' to stats"):
        grad_stats(case.model, losses, case.inputs, case.targets, ("norm",)).importance()


def test_pulls_of_samples_do_not_cancel() -> None:
    """Two samples that pull at the weights in opposite directions: the batch's gradient is zero, theirs are not."""
    model, x = nn.Linear(3, 1, bias=False), torch.tensor([[1.0, 2, 3], [-1, -2, -3]])
    found = grad_stats(model, lambda output, target: output[:, 0], x, torch.zeros(2), ("sum", "sum_abs"))
    batch = weight_importance({"weight": model.weight}, found.sum)["weight"]
    assert batch.abs().max() == 0
    torch.testing.assert_close(found.importance()["weight"], 2 * (x[:1] * model.weight.detach()).abs())


def test_a_failed_step_leaves_neither_results_nor_traces() -> None:
    case = example("mlp")
    found = GradStats(case.model, ("norm",))

    def step() -> None:
        F.cross_entropy(case.model(*case.inputs), case.targets).backward()
        raise KeyError("a bug of the caller's")

    with pytest.raises(KeyError), found:
        step()
    assert found.num_samples == 0
    assert "forward" not in case.model.__dict__
    with found:
        F.cross_entropy(case.model(*case.inputs), case.targets).backward()
    assert_close(found.norm, grad_stats(case.model, losses, case.inputs, case.targets, ("norm",)).norm)


def test_a_forward_of_ones_own_comes_back() -> None:
    case = example("mlp")
    own = case.model.forward
    case.model.forward = own
    with GradStats(case.model, ("norm",)):
        assert case.model.forward is not own
    assert case.model.__dict__["forward"] is own


def test_evaluation_within_the_block_is_not_counted() -> None:
    case = example("mlp")
    with GradStats(case.model, ("norm",)) as found:
        with torch.no_grad():
            case.model(*case.inputs)
        case.model(*case.inputs)  # no backward pass
        F.cross_entropy(case.model(*case.inputs), case.targets).backward()
    assert found.num_samples == BATCH


def test_a_penalty_outside_the_model_is_in_the_gradients_alone() -> None:
    case = example("mlp")
    with GradStats(case.model, ("sum",), reduction="sum") as found:
        loss = losses(case.model(*case.inputs), case.targets).sum()
        (loss + case.model[0].weight.square().sum()).backward()
    weight = case.model[0].weight
    assert weight.grad is not None
    assert_close(weight.grad - found.sum["0.weight"], 2 * weight.detach())


@pytest.mark.parametrize("name", ["own parameter", "positions", "lstm", "custom function"])
def test_a_step_that_cannot_be_watched_is_refused(name: str) -> None:
    case = example(name)
    with pytest.raises(InputError, match="use the function grad_stats"), GradStats(case.model, ("norm",)):
        case.model(*case.inputs)
    assert "forward" not in case.model.__dict__


def test_what_was_not_asked_for_is_named() -> None:
    case = example("mlp")
    found = grad_stats(case.model, losses, case.inputs, case.targets, ("norm",))
    assert repr(found) == "GradStats(norm; 5 samples, 5 parameters)"
    with pytest.raises(InputError, match=r"GradStats\.sum_sq: .*add 'sum_sq' to stats"):
        _ = found.sum_sq
    with pytest.raises(InputError, match="give a direction"):
        _ = found.dot
    with pytest.raises(InputError, match="count a batch"):
        _ = GradStats(case.model).norm


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"stats": ("norms",)}, "stats: unknown name 'norms'.*did you mean 'norm'"),
        ({"stats": "norm"}, r"stats: got 'norm'; give a tuple of names, \('norm',\)"),
        ({"stats": ()}, "stats: asks for nothing"),
        ({"weights": torch.ones(3)}, r"weights: has shape \[3\].*\[5\]"),
        ({"weights": torch.ones(5, dtype=torch.int64)}, "weights: .*floating"),
        ({"weights": [1.0] * 5}, "weights: got list"),
        ({"direction": {"0.wait": torch.ones(1)}}, "direction: unknown name '0.wait'"),
        ({"direction": {"0.weight": torch.ones(5)}}, r"direction\['0.weight'\]: has shape \[5\]"),
        ({"direction": torch.ones(5)}, "direction: got Tensor"),
        ({"loss_fn": F.cross_entropy}, "loss_fn: returned shape .* reduced over the batch"),
    ],
)
def test_bad_input_is_named(change: dict[str, Any], message: str) -> None:
    case = example("mlp")
    arguments = {"model": case.model, "loss_fn": losses, "inputs": case.inputs, "targets": case.targets, **change}
    with pytest.raises(InputError, match=message):
        grad_stats(**arguments)


def test_misuse_of_the_object_is_named() -> None:
    case = example("mlp")
    batch = (losses, case.inputs, case.targets)
    with pytest.raises(UnknownNameError, match="reduction"):
        GradStats(case.model, reduction="average")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="gram is of one batch"):
        GradStats(case.model, ("gram",)).update(*batch).update(*batch)
    with pytest.raises(InputError, match="with all batches, or with none"):
        GradStats(case.model).update(*batch).update(*batch, weights=torch.ones(BATCH))
    with pytest.raises(InputError, match="pairs"):
        GradStats(case.model).update_all(losses, [case.inputs[0]])
    found = GradStats(case.model)
    with found, pytest.raises(InputError, match="entered already"):
        found.__enter__()
    training = nn.Sequential(nn.Linear(5, 3), nn.BatchNorm1d(3)).eval()
    found = GradStats(training)
    training.train()
    with pytest.raises(InputError, match=r"model\.eval\(\)"), found:
        raise AssertionError("the block must not run")


def test_explain() -> None:
    case = example("lstm")
    said = explain("grad_stats", case.model, losses, case.inputs, case.targets, stats=("norm",))
    assert said.chosen == "loop"
    assert str(said).startswith("grad_stats(Recurrent, 5 samples, 6 parameters)")


def test_what_two_samples_told_is_remembered() -> None:
    """The probe runs once for batches of one shape, and again when the model's mode changes."""
    case = example("mlp")
    sizes: list[int] = []
    case.model.register_forward_pre_hook(lambda module, args: sizes.append(len(args[0])))
    found = GradStats(case.model, ("norm",))
    for _ in range(3):
        with found:
            F.cross_entropy(case.model(*case.inputs), case.targets).backward()
        found.update(losses, case.inputs, case.targets)
    assert sizes.count(2) == 2
    assert sizes.count(BATCH) == 6
    case.model.eval()
    found.update(losses, case.inputs, case.targets)
    assert sizes.count(2) == 3
