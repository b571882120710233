"""Rewinding: exact masks, weights frozen bit for bit under any optimiser, and what each variant trains."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

import fastmem
from fastmem.defenses import FrozenWeights, Privacy, Records, Scoring, make_loss, recalibrate, rewind
from fastmem.errors import InputError, UnknownNameError
from fastmem.training import Recipe

from .conftest import Trained

OPTIMIZERS = {
    "sgd": Recipe(optimizer="sgd", momentum=0.9, weight_decay=0.05, epochs=3, batch_size=8),
    "nesterov": Recipe(optimizer="sgd", momentum=0.9, nesterov=True, weight_decay=0.05, epochs=3, batch_size=8),
    "adam": Recipe(optimizer="adam", learning_rate=0.05, weight_decay=0.05, epochs=3, batch_size=8),
    "adamw": Recipe(optimizer="adamw", learning_rate=0.05, weight_decay=0.05, epochs=3, batch_size=8, clip_norm=1.0),
}


def _bits(value: Tensor) -> Tensor:
    return value.contiguous().view(torch.int32 if value.dtype == torch.float32 else torch.int64)


def _rewind(trained: Trained, **options: object) -> fastmem.defenses.Rewound:
    options = {"scoring": Scoring(steps=3), "tuning": OPTIMIZERS["sgd"], **options}
    return rewind(trained.model, trained.initial, trained.members, trained.reference, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("fraction", [0.02, 0.3])
def test_frozen_weights_are_bit_equal_to_the_initial_ones(trained: Trained, optimizer: str, fraction: float) -> None:
    result = _rewind(trained, fraction=fraction, tuning=OPTIMIZERS[optimizer], loss=make_loss("relaxloss"))
    assert result.selection is not None
    moved = 0
    for name, mask in result.selection.masks.items():
        chosen = mask.unpack()
        assert torch.equal(_bits(result.state[name][chosen]), _bits(trained.initial[name][chosen]))
        moved += int((result.state[name] != trained.model.state_dict()[name])[~chosen].sum())
    total = 6 * 7 + 7 * 3
    # The rest is trained, so the test is not of a network that stood still.
    assert moved == total - result.selection.count
    assert result.selection.count == result.frozen == max(1, math.floor(fraction * total))


@pytest.mark.parametrize("scope", ["global", "layer"])
def test_masks_have_exactly_the_fraction(trained: Trained, scope: str) -> None:
    for fraction in (0.001, 0.05, 0.5):
        result = _rewind(trained, fraction=fraction, scope=scope, variant="rewind_only")
        assert result.selection is not None
        sizes = [63] if scope == "global" else [42, 21]
        assert result.selection.count == sum(max(1, math.floor(fraction * size)) for size in sizes)


def test_every_variant_starts_and_trains_what_the_paper_says(trained: Trained) -> None:
    scores = {"0.weight": torch.rand(7, 6), "2.weight": torch.rand(3, 7)}
    results = {
        variant: _rewind(trained, fraction=0.2, variant=variant, scores=scores)
        for variant in ("rewind_freeze", "rewind_tune", "zero_tune", "rewind_only", "tune")
    }
    before = trained.model.state_dict()
    selection = results["rewind_freeze"].selection
    assert selection is not None
    for name in scores:
        chosen = selection.masks[name].unpack()
        state = {variant: result.state[name] for variant, result in results.items()}
        assert torch.equal(state["rewind_freeze"][chosen], trained.initial[name][chosen])
        assert (state["rewind_freeze"] != before[name])[~chosen].any()
        assert torch.equal(state["rewind_tune"][~chosen], before[name][~chosen])
        assert (state["rewind_tune"][chosen] != trained.initial[name][chosen]).any()
        assert (state["zero_tune"][chosen] == 0).all()
        assert torch.equal(state["rewind_only"], torch.where(chosen, trained.initial[name], before[name]))
        assert (state["tune"] != before[name]).all()
    # What may not be ranked is trained with the rest, or stays with it.
    assert torch.equal(results["rewind_tune"].state["0.bias"], before["0.bias"])
    assert not torch.equal(results["rewind_freeze"].state["0.bias"], before["0.bias"])
    assert results["tune"].selection is None
    assert results["rewind_tune"].frozen == 63 + 10 - selection.count


def test_norms_and_biases_may_be_ranked_too(trained_norm: Trained) -> None:
    wide = _rewind(trained_norm, fraction=0.5, norms=True, biases=True, variant="rewind_only")
    assert wide.selection is not None
    assert set(wide.selection.masks) == set(dict(trained_norm.model.named_parameters()))


def test_the_same_seed_gives_the_same_bytes_and_the_model_is_left_alone(trained: Trained) -> None:
    before = {name: value.clone() for name, value in trained.model.state_dict().items()}
    first, again, other = (_rewind(trained, seed=seed, fraction=0.1) for seed in (1, 1, 2))
    assert all(torch.equal(first.state[name], again.state[name]) for name in first.state)
    assert any(not torch.equal(first.state[name], other.state[name]) for name in first.state)
    assert all(torch.equal(value, before[name]) for name, value in trained.model.state_dict().items())


def test_running_statistics_follow_the_rule(trained_norm: Trained) -> None:
    before = trained_norm.model.state_dict()["1.running_mean"].clone()
    means = {rule: _rewind(trained_norm, batch_norm=rule).state for rule in ("update", "recalibrate", "freeze")}
    assert torch.equal(means["freeze"]["1.running_mean"], before)
    assert not torch.equal(means["update"]["1.running_mean"], before)
    # The mean over all members, under the final weights.
    state = means["recalibrate"]
    hidden = trained_norm.members.x @ state["0.weight"].T + state["0.bias"]
    torch.testing.assert_close(state["1.running_mean"], hidden.mean(dim=0))
    torch.testing.assert_close(state["1.running_var"], hidden.var(dim=0))


def test_recalibration_keeps_modes_and_momenta(trained_norm: Trained) -> None:
    model = trained_norm.model.train()
    recalibrate(model, trained_norm.members)
    assert model.training
    assert model[1].training  # type: ignore[index]
    assert model[1].momentum == 0.1  # type: ignore[index]


def test_a_changed_weight_is_found_to_the_last_bit() -> None:
    model = nn.Linear(4, 4)
    mask = torch.zeros(4, 4, dtype=torch.bool)
    mask[1, 2] = mask[3, 0] = True
    with torch.no_grad():
        model.weight[1, 2] = 0.0
    held = FrozenWeights(model, {"weight": mask})
    held.require_unchanged()
    with torch.no_grad():
        model.weight[1, 2] = -0.0
        model.weight[0, 0] = 5.0
    assert held.changed() == {"weight": 1}
    with pytest.raises(RuntimeError, match="weight"):
        held.require_unchanged()
    held.restore()
    held.require_unchanged()
    assert model.weight[0, 0] == 5.0


@pytest.mark.parametrize("share", [0.01, 0.6])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_freezing_works_in_every_layout(share: float, layout: torch.memory_format) -> None:
    model = nn.Conv2d(8, 8, 3).to(memory_format=layout)  # type: ignore[call-overload]
    mask = torch.rand(8, 8, 3, 3, generator=torch.Generator().manual_seed(3)) < share
    kept = model.weight.detach()[mask].clone()
    held = FrozenWeights(model, {"weight": mask})
    model(torch.randn(2, 8, 5, 5)).square().sum().backward()
    held.mask_gradients()
    assert model.weight.grad is not None
    assert (model.weight.grad[mask] == 0).all()
    assert (model.weight.grad[~mask] != 0).all()
    with torch.no_grad():
        model.weight += 1
    held.restore()
    assert torch.equal(model.weight.detach()[mask], kept)


def test_dp_sgd_freezes_too_and_says_what_it_spent(trained: Trained) -> None:
    pytest.importorskip("opacus")
    runs = [
        _rewind(trained, fraction=0.1, privacy=Privacy(noise=noise), tuning=Recipe(epochs=2, batch_size=8))
        for noise in (1.0, 1.0, 4.0)
    ]
    first = runs[0]
    assert first.selection is not None
    for name, mask in first.selection.masks.items():
        chosen = mask.unpack()
        assert torch.equal(_bits(first.state[name][chosen]), _bits(trained.initial[name][chosen]))
    assert all(torch.equal(first.state[name], runs[1].state[name]) for name in first.state)
    assert first.epsilon is not None
    assert runs[2].epsilon is not None
    assert 0 < runs[2].epsilon < first.epsilon
    assert set(first.state) == set(trained.initial)


def test_dp_sgd_refuses_what_is_no_mean_over_records(trained: Trained, trained_norm: Trained) -> None:
    pytest.importorskip("opacus")
    with pytest.raises(InputError, match="relaxloss"):
        _rewind(trained, privacy=Privacy(), loss=make_loss("relaxloss"))
    with pytest.raises(InputError, match="Opacus"):
        _rewind(trained_norm, privacy=Privacy())
    for changes in ({"noise": 0.0}, {"clip_norm": -1.0}, {"delta": 1.0}):
        with pytest.raises(InputError, match=next(iter(changes))):
            Privacy(**changes)


def test_bad_input_is_named(trained: Trained) -> None:
    with pytest.raises(UnknownNameError, match="variant"):
        _rewind(trained, variant="a3")
    for fraction in (0.0, 1.0, -0.1, float("nan")):
        with pytest.raises(InputError, match="fraction"):
            _rewind(trained, fraction=fraction)
    with pytest.raises(InputError, match="initial"):
        rewind(trained.model, {}, trained.members, trained.reference)
    with pytest.raises(InputError, match="patience"):
        _rewind(trained, tuning=Recipe(patience=3))
    with pytest.raises(InputError, match="take the loss label_smoothing"):
        _rewind(trained, tuning=Recipe(label_smoothing=0.1))
    with pytest.raises(UnknownNameError, match="batch_norm"):
        _rewind(trained, batch_norm="reset")
    with pytest.raises(InputError, match="masks"):
        FrozenWeights(trained.model, {"0.weight": torch.ones(3, dtype=torch.bool)})
    same = dict(trained.model.state_dict())
    with pytest.warns(UserWarning, match="changes nothing"):
        rewind(trained.model, same, trained.members, variant="tune", tuning=Recipe(epochs=1))


def test_stored_bytes_and_normalised_inputs_are_the_same_records() -> None:
    x = torch.randint(0, 256, (12, 1, 4, 4), dtype=torch.uint8)
    y = torch.arange(12) % 3
    mean, std = torch.tensor([0.4]), torch.tensor([0.3])
    stored, inputs = Records(x, y, (mean, std)), Records((x / 255 - 0.4) / 0.3, y)
    rows = torch.tensor([3, 0, 7])
    like = torch.zeros(())
    torch.testing.assert_close(stored.batch(rows, like)[0], inputs.batch(rows, like)[0])
