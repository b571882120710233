import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from fastmem.errors import InputError, UnknownNameError
from fastmem.ops._registry import explain, use_backend
from fastmem.ops.weight_importance import KINDS, weight_importance

DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
BY_HAND = {
    "abs_gw": lambda w, g: abs(g * w),
    "sq_gw": lambda w, g: (g * w) ** 2,
    "abs_g": lambda w, g: abs(g),
    "sq_g": lambda w, g: g * g,
    "gw": lambda w, g: g * w,
}


@pytest.fixture(params=["reference", "cpu", "triton"])
def backend(request):
    remark = explain("weight_importance").remarks[request.param]
    if remark.startswith("not available"):
        pytest.skip(remark)
    with use_backend(request.param):
        yield request.param


def tensors(shapes, dtype, seed=0):
    generator = torch.Generator().manual_seed(seed)
    made = [torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype) for shape in shapes]
    return {f"layer{i}": tensor for i, tensor in enumerate(made)}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_every_weight_by_hand(backend, kind, dtype):
    shapes = [(3, 5), (1,), (129,), (2, 3, 2, 2)]
    weights, gradients = tensors(shapes, dtype), tensors(shapes, dtype, seed=1)
    if backend == "triton" and dtype is torch.float64:
        with pytest.raises(InputError, match="float64"):
            weight_importance(weights, gradients, kind)
        return
    scores = weight_importance(weights, gradients, kind, scale=0.5)
    again = weight_importance(weights, gradients, kind, scores=scores, scale=2.0)
    assert again is scores
    for name, weight in weights.items():
        assert scores[name].dtype is (torch.float64 if dtype is torch.float64 else torch.float32)
        pairs = zip(weight.flatten().tolist(), gradients[name].flatten().tolist(), strict=True)
        expected = torch.tensor([2.5 * BY_HAND[kind](w, g) for w, g in pairs], dtype=torch.float64)
        tolerance = 1e-12 if dtype is torch.float64 else 1e-6
        torch.testing.assert_close(scores[name].flatten().double(), expected, rtol=tolerance, atol=tolerance)


@settings(deadline=None, max_examples=40)
@given(sizes=st.lists(st.integers(0, 300), min_size=1, max_size=6), kind=st.sampled_from(KINDS))
def test_the_kernel_equals_the_reference(sizes, kind):
    weights, gradients = tensors(sizes, torch.float32), tensors(sizes, torch.float32, seed=1)
    with use_backend("reference"):
        expected = weight_importance(weights, gradients, kind, scale=0.3)
    found = weight_importance(weights, gradients, kind, scale=0.3)
    for name in weights:
        torch.testing.assert_close(found[name], expected[name], rtol=1e-6, atol=0)


def test_tensors_of_any_size_in_one_launch(backend):
    sizes = [33_001, 0, 1, 16_384]
    weights, gradients = tensors(sizes, torch.float32), tensors(sizes, torch.float32, seed=1)
    scores = weight_importance(weights, gradients, "sq_gw", scores={n: torch.ones_like(w) for n, w in weights.items()})
    for name, weight in weights.items():
        torch.testing.assert_close(scores[name], 1 + (weight * gradients[name]).square(), rtol=1e-6, atol=0)


def test_threads_do_not_change_a_bit():
    weights, gradients = tensors([300_000], torch.float32), tensors([300_000], torch.float32, seed=1)
    found = []
    for threads in (1, 2, 3):
        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        found.append(weight_importance(weights, gradients)["layer0"])
        torch.set_num_threads(before)
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])


def test_half_precision_steps_do_not_vanish(backend):
    """In bfloat16 1 + 2^-9 is 1 again: a thousand small steps would leave nothing."""
    weights = {"w": torch.ones(4, dtype=torch.bfloat16)}
    scores = weight_importance(weights, {"w": torch.ones(4, dtype=torch.bfloat16)})
    small = {"w": torch.full((4,), 2.0**-9, dtype=torch.bfloat16)}
    for _ in range(1000):
        weight_importance(weights, small, scores=scores)
    torch.testing.assert_close(scores["w"], torch.full((4,), 1 + 1000 * 2.0**-9))
    lost = torch.ones(4, dtype=torch.bfloat16)
    for _ in range(1000):
        lost += small["w"]
    assert lost.max() == 1


def test_a_module_with_its_own_gradients(backend):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(2, 4, 3), nn.Flatten(), nn.Linear(36, 3)).to(memory_format=torch.channels_last)
    model[2].bias.requires_grad_(False)
    model(torch.randn(5, 2, 5, 5)).square().sum().backward()
    scores = weight_importance(model)
    assert set(scores) == {"0.weight", "0.bias", "2.weight"}
    for name, parameter in model.named_parameters():
        if name in scores:
            torch.testing.assert_close(scores[name], (parameter * parameter.grad).abs().detach())
            assert scores[name].is_contiguous()
            assert not scores[name].requires_grad


def test_compiles_into_one_graph():
    weights, gradients = tensors([(4, 3)], torch.float32), tensors([(4, 3)], torch.float32, seed=1)

    @torch.compile(fullgraph=True, backend="aot_eager")
    def step(weight, gradient):
        return weight_importance({"w": weight}, {"w": gradient})["w"] * 2

    expected = 2 * (weights["layer0"] * gradients["layer0"]).abs()
    torch.testing.assert_close(step(weights["layer0"], gradients["layer0"]), expected)


def test_the_operator_keeps_its_schema():
    weights, gradients = tensors([(4, 3), (2,)], torch.float32), tensors([(4, 3), (2,)], torch.float32, seed=1)
    scores = [torch.zeros_like(weight) for weight in weights.values()]
    arguments = (scores, list(weights.values()), list(gradients.values()), "abs_gw", 1.0, False)
    torch.library.opcheck(torch.ops.fastmem.weight_importance_.default, arguments)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"kind": "abs_wg"}, "kind"),
        ({"scale": math.nan}, "scale"),
        ({"gradients": {"layer9": torch.zeros(2)}}, "gradients"),
        ({"gradients": {"layer0": torch.zeros(3)}}, r"gradients\['layer0'\]"),
        ({"gradients": {"layer0": torch.zeros(2, dtype=torch.float64)}}, r"gradients\['layer0'\]"),
        ({"gradients": {"layer0": None}}, "no weight has a gradient"),
        ({"scores": {}}, "scores"),
        ({"scores": {"layer0": torch.zeros(2, dtype=torch.float16)}}, r"scores\['layer0'\]"),
        ({"scores": {"layer0": torch.zeros(4)[::2]}}, r"scores\['layer0'\]"),
        ({"weights": torch.zeros(2)}, "weights"),
        ({"weights": {"layer0": torch.zeros(2, dtype=torch.int64)}}, r"weights\['layer0'\]"),
    ],
)
def test_bad_input_is_named(change, named):
    arguments = {"weights": tensors([2], torch.float32), "gradients": tensors([2], torch.float32), **change}
    expected = UnknownNameError if "kind" in change else InputError
    with pytest.raises(expected, match=named):
        weight_importance(**arguments)
