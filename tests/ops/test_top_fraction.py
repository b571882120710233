import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fastmem.errors import InputError, UnknownNameError
from fastmem.ops._registry import explain, use_backend
from fastmem.ops.top_fraction import top_fraction


@pytest.fixture(params=["reference", "cpu", "triton"])
def backend(request):
    remark = explain("top_fraction").remarks[request.param]
    if remark.startswith("not available"):
        pytest.skip(remark)
    with use_backend(request.param):
        yield request.param


def by_sorting(scores: dict[str, torch.Tensor], fraction: float) -> list[tuple[str, int]]:
    """The selection by Python's own sort: highest score first, then position."""
    every = [
        (-float(value), layer, index, name)
        for layer, (name, score) in enumerate(scores.items())
        for index, value in enumerate(score.flatten())
    ]
    return sorted((name, index) for _, _, index, name in sorted(every)[: max(1, math.floor(fraction * len(every)))])


def selected(masks) -> list[tuple[str, int]]:
    return sorted(
        (name, int(index)) for name, mask in masks.items() for index in mask.unpack().flatten().nonzero().flatten()
    )


@settings(deadline=None, max_examples=60)
@given(
    values=st.lists(
        st.lists(st.sampled_from([0.0, 0.5, 0.5, 1.0, 3.0, 1e-40]), min_size=1, max_size=40), min_size=1, max_size=4
    ),
    fraction=st.floats(0.001, 1.0),
    name=st.sampled_from(["reference", "cpu"]),
)
def test_exactly_the_highest_and_ties_by_position(values, fraction, name):
    scores = {f"layer{i}": torch.tensor(row) for i, row in enumerate(values)}
    with use_backend(name):
        found = top_fraction(scores, fraction)
        assert selected(found.masks) == by_sorting(scores, fraction)
        assert found.count == max(1, math.floor(fraction * found.total))
        layers = top_fraction(scores, fraction, scope="layer")
    assert selected(layers.masks) == sorted(
        pair for key, score in scores.items() for pair in by_sorting({key: score}, fraction)
    )


@pytest.mark.parametrize("fraction", [1e-6, 0.001, 0.01, 0.3, 1.0])
def test_many_weights_through_the_sampled_bound(backend, fraction):
    """More than the sample holds; the scores of the second tensor are larger by far, so the sample sees both kinds."""
    generator = torch.Generator().manual_seed(0)
    scores = {
        "small": torch.rand(700_001, generator=generator),
        "large": torch.randn(70_003, generator=generator).abs().mul_(100).round_(),
    }
    found = top_fraction(scores, fraction)
    every = torch.cat(list(scores.values()))
    order = torch.sort(every, descending=True, stable=True).indices[: found.count]
    expected = torch.zeros_like(every, dtype=torch.bool)
    expected[order] = True
    assert torch.equal(torch.cat([mask.unpack() for mask in found.masks.values()]), expected)
    assert found.thresholds["small"] == found.thresholds["large"] == float(every[order[-1]])


@pytest.mark.parametrize("fraction", [0.2, 0.7])
def test_ties_are_cut_by_position_wherever_work_is_cut(backend, fraction):
    """Three values only: the threshold's own score stands in every chunk, and its last one is somewhere within."""
    generator = torch.Generator().manual_seed(0)
    scores = {
        f"layer{i}": torch.randint(0, 3, (size,), generator=generator).float() for i, size in enumerate((33001, 9))
    }
    found = top_fraction(scores, fraction)
    order = torch.sort(torch.cat(list(scores.values())), descending=True, stable=True).indices[: found.count]
    expected = torch.zeros(33010, dtype=torch.bool)
    expected[order] = True
    assert torch.equal(torch.cat([mask.unpack() for mask in found.masks.values()]), expected)


def test_a_sample_that_misleads_is_noticed():
    """Every score that the regular sample meets is huge, so its bound is far too high: the full pass must follow."""
    scores = torch.rand(1 << 20)
    scores[:: (1 << 20) // (1 << 18)] = 1e6
    found = top_fraction({"w": scores}, 0.5)
    assert found.masks["w"].unpack().sum() == found.count == 1 << 19
    assert float(scores[found.masks["w"].unpack()].min()) >= float(scores[~found.masks["w"].unpack()].max())


def test_masks_are_packed_a_bit_each(backend):
    mask = top_fraction({"w": torch.tensor([[0.0, 9, 0], [0, 0, 0], [0, 8, 7]])}, 1 / 3).masks["w"]
    assert mask.packed.tolist() == [0b10000010, 0b1]
    assert mask.count == 3
    assert mask.unpack().tolist() == [[False, True, False], [False, False, False], [False, True, True]]
    assert np.array_equal(np.unpackbits(mask.packed.numpy(), bitorder="little")[:9], mask.unpack().flatten().numpy())


def test_at_least_one_is_selected(backend):
    assert top_fraction({"w": torch.tensor([1.0, 2.0])}, 0.01).masks["w"].unpack().tolist() == [False, True]


def test_float64_and_threads():
    scores = torch.rand(300_000)
    before = torch.get_num_threads()
    packed = []
    for threads in (1, 3):
        torch.set_num_threads(threads)
        packed.append(top_fraction({"w": scores}, 0.02).masks["w"].packed)
    torch.set_num_threads(before)
    packed.append(top_fraction({"w": scores.double()}, 0.02).masks["w"].packed)
    assert torch.equal(packed[0], packed[1])
    assert torch.equal(packed[0], packed[2])


@pytest.mark.parametrize("value", [-1.0, math.nan, -math.inf])
@pytest.mark.parametrize("size", [3, 70_000])
def test_invalid_scores_are_counted_and_placed(backend, value, size):
    scores = torch.ones(size)
    scores[2] = value
    with pytest.raises(InputError, match=r"1 of 'w' are negative or NaN, the first at 2"):
        top_fraction({"w": scores}, 0.5)


def test_minus_zero_is_zero_and_infinity_is_largest(backend):
    found = top_fraction({"w": torch.tensor([-0.0, math.inf, 0.0, 1.0])}, 0.75)
    assert found.masks["w"].unpack().tolist() == [True, True, False, True]


@pytest.mark.parametrize(
    ("arguments", "error", "named"),
    [
        (({}, 0.5), InputError, "scores"),
        (({"w": torch.ones(3)}, 0.0), InputError, "fraction"),
        (({"w": torch.ones(3)}, 1.5), InputError, "fraction"),
        (({"w": torch.ones(3)}, 0.5, "network"), UnknownNameError, "scope"),
        (({"w": torch.ones(3, dtype=torch.float16)}, 0.5), InputError, r"scores\['w'\]"),
        (({"w": torch.ones(0)}, 0.5), InputError, r"scores\['w'\]"),
        (({"w": torch.ones(3), "v": torch.ones(3).double()}, 0.5), InputError, r"scores\['v'\]"),
    ],
)
def test_bad_input_is_named(arguments, error, named):
    with pytest.raises(error, match=named):
        top_fraction(*arguments)
