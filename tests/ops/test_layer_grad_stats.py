import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from fastmem.errors import InputError, UnknownNameError
from fastmem.ops import _native
from fastmem.ops._registry import explain, use_backend
from fastmem.ops.layer_grad_stats import STATS, layer_grad_stats

WHY_NO_CPU = _native.why_no_cpu()
needs_cpu = pytest.mark.skipif(WHY_NO_CPU is not None, reason=str(WHY_NO_CPU))
BACKENDS = ("reference", "cpu", "triton")
CONVOLUTIONS = {
    "first layer": (3, 10, (9, 8), (5, 5), {"padding": (2, 2)}),
    "one channel": (1, 16, (8, 8), (3, 3), {"padding": (1, 1)}),
    "one channel, few outputs": (1, 2, (8, 8), (3, 3), {}),
    "a block of channels": (16, 9, (8, 8), (3, 3), {"padding": (1, 1)}),
    "blocks and a rest": (37, 11, (5, 6), (3, 2), {"padding": (1, 1)}),
    "point": (50, 24, (6, 6), (1, 1), {}),
    "point with stride": (19, 4, (7, 6), (1, 1), {"stride": (2, 3)}),
    "stride leaves pixels over": (20, 8, (10, 11), (3, 3), {"stride": (3, 2), "padding": (1, 0)}),
    "dilation": (3, 8, (9, 11), (3, 2), {"dilation": (2, 3), "padding": (2, 1)}),
    "dilation, a row": (17, 8, (1, 40), (1, 5), {"dilation": (1, 3), "padding": (0, 6)}),
    "one-dimensional": (5, 7, (1, 33), (1, 4), {"stride": (1, 2)}),
    "groups": (12, 6, (6, 5), (3, 3), {"groups": 3, "padding": (1, 1)}),
    "groups of blocks": (66, 18, (4, 4), (2, 2), {"groups": 2}),
    "depthwise": (20, 40, (6, 6), (3, 3), {"groups": 20, "padding": (1, 1)}),
    "one position": (18, 5, (3, 3), (3, 3), {}),
    "padding wider than the input": (4, 4, (1, 2), (2, 2), {"padding": (3, 4)}),
    "long rows": (2, 3, (2, 150), (2, 7), {"padding": (0, 3)}),
}


def needed(backend):
    """Skip where the backend cannot run. (Triton's runs in its interpreter where there is no GPU.)"""
    remark = explain("layer_grad_stats").remarks[backend]
    if remark.startswith("not available"):
        pytest.skip(remark)


@pytest.fixture
def instruction_set():
    """Sets the instruction set, and back afterwards."""
    module = _native.cpu_module()
    before = module.isa()
    yield module.set_isa
    module.set_isa(before)


@pytest.fixture
def threads():
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def isas():
    return ["generic"] if WHY_NO_CPU else _native.cpu_module().isas()


def operands(samples, channels, outputs, size, kernel_size, options, dtype=torch.float32, seed=0):
    """An input, a gradient at the output and the options of layer_grad_stats."""
    generator = torch.Generator().manual_seed(seed)
    a = torch.randn(samples, channels, *size, generator=generator, dtype=torch.float64)
    groups = options.get("groups", 1)
    out = F.conv2d(a[:1], a.new_zeros(outputs, channels // groups, *kernel_size), **options)
    delta = torch.randn(samples, *out.shape[1:], generator=generator, dtype=torch.float64)
    return a.to(dtype), delta.to(dtype), {"kernel_size": kernel_size, **options}


def by_autograd(a, delta, options):
    """The statistics in float64, sample by sample, by differentiating the layer itself."""
    options = dict(options)
    kernel_size = options.pop("kernel_size", None)
    gradients = []
    for x, d in zip(a.double(), delta.double(), strict=True):
        if kernel_size is None:
            weight = torch.zeros(d.shape[1], x.shape[1], dtype=torch.float64, requires_grad=True)
            out = F.linear(x, weight)
        else:
            shape = d.shape[0], x.shape[0] // options.get("groups", 1), *kernel_size
            weight = torch.zeros(shape, dtype=torch.float64, requires_grad=True)
            out = F.conv2d(x[None], weight, **options)[0]
        gradients.append(torch.autograd.grad((out * d).sum(), weight)[0])
    g = torch.stack(gradients)
    return {"sum": g.sum(0), "sum_sq": (g * g).sum(0), "sum_abs": g.abs().sum(0), "norm_sq": (g * g).flatten(1).sum(1)}


def assert_equal(found, expected, precise):
    """Equal up to rounding, measured by the largest element: single sums may cancel."""
    for name, value in expected.items():
        result = getattr(found, name)
        assert result.shape == value.shape
        assert result.is_contiguous()
        scale = float(value.abs().max()) if value.numel() else 0.0
        tolerance = (1e-13 if precise else 1e-5) * scale
        torch.testing.assert_close(result.double(), value, rtol=0, atol=tolerance, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("case", CONVOLUTIONS)
@pytest.mark.parametrize("backend", ["reference", "triton"])
def test_the_reference_and_triton_equal_autograd(backend, case, dtype):
    needed(backend)
    a, delta, options = operands(3, *CONVOLUTIONS[case], dtype=dtype)
    with use_backend(backend):
        found = layer_grad_stats(a, delta, STATS, **options)
    assert found.sum is not None
    assert found.sum.dtype is dtype
    assert_equal(found, by_autograd(a, delta, options), dtype is torch.float64)


@needs_cpu
@pytest.mark.parametrize("isa", isas())
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("case", CONVOLUTIONS)
def test_the_kernel_equals_autograd(instruction_set, case, dtype, isa):
    instruction_set(isa)
    a, delta, options = operands(5, *CONVOLUTIONS[case], dtype=dtype)
    with use_backend("cpu"):
        found = layer_grad_stats(a, delta, STATS, **options)
    assert_equal(found, by_autograd(a, delta, options), dtype is torch.float64)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("length", [1, 2, 19, 70])
@pytest.mark.parametrize(("features", "outputs"), [(1, 1), (5, 3), (16, 8), (100, 21)])
def test_sequences_equal_autograd(backend, length, features, outputs):
    needed(backend)
    generator = torch.Generator().manual_seed(1)
    a = torch.randn(4, length, features, generator=generator)
    delta = torch.randn(4, length, outputs, generator=generator)
    with use_backend(backend):
        found = layer_grad_stats(a, delta, STATS)
        turned = layer_grad_stats(a.mT.contiguous().mT, delta.mT.contiguous().mT, STATS)
    expected = by_autograd(a, delta, {})
    assert_equal(found, expected, precise=False)
    assert_equal(turned, expected, precise=False)


@st.composite
def geometries(draw):
    groups = draw(st.sampled_from([1, 1, 1, 2, 3]))
    channels, outputs = groups * draw(st.integers(1, 35)), groups * draw(st.integers(1, 18))
    pair = lambda low, high: draw(st.tuples(st.integers(low, high), st.integers(low, high)))  # noqa: E731
    kernel_size, stride, padding, dilation = pair(1, 5), pair(1, 3), pair(0, 3), pair(1, 3)
    extra = pair(1, 12)
    size = tuple(d * (k - 1) + e for d, k, e in zip(dilation, kernel_size, extra, strict=True))
    options = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
    return channels, outputs, size, kernel_size, options


def relaid(tensor, layout):
    """The same values in another layout of memory."""
    if layout == "channels_last":
        return tensor.contiguous(memory_format=torch.channels_last)
    if layout == "sliced":
        big = tensor.new_full([size + 2 for size in tensor.shape], torch.nan)
        inner = big[1:-1, 1:-1, 1:-1, 1:-1]
        return inner.copy_(tensor)
    if layout == "spread":
        return tensor.new_full([*tensor.shape, 2], torch.nan)[..., 0].copy_(tensor)
    return tensor


@needs_cpu
@settings(max_examples=60, deadline=None)
@given(
    geometry=geometries(),
    samples=st.integers(1, 7),
    layouts=st.tuples(*[st.sampled_from(["plain", "channels_last", "sliced", "spread"])] * 2),
    isa=st.sampled_from(isas()),
    stats=st.sets(st.sampled_from(STATS), min_size=1),
)
def test_any_geometry_and_layout(geometry, samples, layouts, isa, stats):
    a, delta, options = operands(samples, *geometry)
    expected = by_autograd(a, delta, options)
    module = _native.cpu_module()
    before = module.isa()
    module.set_isa(isa)
    try:
        with use_backend("cpu"):
            found = layer_grad_stats(relaid(a, layouts[0]), relaid(delta, layouts[1]), stats, **options)
    finally:
        module.set_isa(before)
    assert {name for name in STATS if getattr(found, name) is not None} == stats
    assert_equal(found, {name: expected[name] for name in stats}, precise=False)


@needs_cpu
@pytest.mark.parametrize("isa", isas())
@pytest.mark.parametrize(
    "geometry",
    [
        (3, 8, (16, 16), (5, 5), {"padding": (2, 2)}),
        (64, 40, (8, 8), (3, 3), {"padding": (1, 1)}),
        (33, 12, (12, 12), (1, 1), {}),
    ],
)
def test_the_number_of_threads_changes_no_bit(instruction_set, threads, geometry, isa):
    instruction_set(isa)
    a, delta, options = operands(48, *geometry)
    results = []
    for count in (1, 2, 3):
        threads(count)
        with use_backend("cpu"):
            results.append(layer_grad_stats(a, delta, STATS, **options))
    for other in results[1:]:
        assert all(torch.equal(x, y) for x, y in zip(results[0], other, strict=True))
    assert_equal(results[0], by_autograd(a, delta, options), precise=False)


@needs_cpu
def test_the_order_of_the_samples_is_nothing_but_rounding():
    a, delta, options = operands(200, 3, 8, (8, 8), (3, 3), {})
    order = torch.randperm(200, generator=torch.Generator().manual_seed(2))
    found, turned = (
        layer_grad_stats(a, delta, STATS, **options),
        layer_grad_stats(a[order], delta[order], STATS, **options),
    )
    for name in ("sum_sq", "sum_abs"):
        torch.testing.assert_close(getattr(found, name), getattr(turned, name), rtol=1e-6, atol=0)
    assert found.norm_sq is not None
    assert turned.norm_sq is not None
    torch.testing.assert_close(found.norm_sq[order], turned.norm_sq, rtol=1e-6, atol=0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("backend", BACKENDS)
def test_half_precision_is_summed_in_float32(backend, dtype):
    needed(backend)
    a, delta, options = operands(6, 18, 5, (7, 7), (3, 3), {}, dtype=dtype)
    with use_backend(backend):
        found = layer_grad_stats(a, delta, STATS, **options)
    assert found.sum is not None
    assert found.sum.dtype is torch.float32
    assert_equal(found, by_autograd(a, delta, options), precise=False)


@pytest.mark.parametrize("backend", BACKENDS)
def test_nothing_to_sum(backend):
    needed(backend)
    with use_backend(backend):
        found = layer_grad_stats(torch.zeros(0, 3, 8, 8), torch.zeros(0, 4, 6, 6), STATS, kernel_size=(3, 3))
        no_positions = layer_grad_stats(torch.zeros(2, 0, 5), torch.zeros(2, 0, 3), STATS)
    assert_equal(found, by_none((4, 3, 3, 3), 0), precise=True)
    assert_equal(no_positions, by_none((3, 5), 2), precise=True)


def by_none(shape, samples):
    zeros = torch.zeros(shape, dtype=torch.float64)
    return {"sum": zeros, "sum_sq": zeros, "sum_abs": zeros, "norm_sq": torch.zeros(samples, dtype=torch.float64)}


@needs_cpu
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_sample_without_numbers_keeps_to_itself(bad):
    """Its norm is no number; those of its neighbours, packed into the same registers, are."""
    a, delta, options = operands(6, 5, 3, (6, 6), (3, 3), {"padding": (1, 1)})
    delta[2] = bad
    with use_backend("cpu"):
        norms = layer_grad_stats(a, delta, ("norm_sq",), **options).norm_sq
    assert norms is not None
    assert norms.isfinite().tolist() == [True, True, False, True, True, True]


def test_a_forgotten_border_would_be_seen():
    """The oracle tells zero padding from none: the same tile with its border left out is another gradient."""
    a, delta, options = operands(2, 3, 4, (6, 6), (3, 3), {"padding": (1, 1)})
    a[..., 0, :] += 100
    without = layer_grad_stats(F.pad(a, (1, 1, 1, 1), mode="replicate"), delta, STATS, kernel_size=(3, 3))
    with pytest.raises(AssertionError):
        assert_equal(without, by_autograd(a, delta, options), precise=False)
    padded = layer_grad_stats(F.pad(a, (1, 1, 1, 1)), delta, STATS, kernel_size=(3, 3))
    assert_equal(padded, by_autograd(a, delta, options), precise=False)


def test_explain_takes_the_arguments_of_the_function():
    a, delta, options = operands(2, 3, 4, (6, 6), (3, 3), {"padding": (1, 1)})
    remarks = explain("layer_grad_stats", a, delta, ("sum",), **options).remarks
    assert remarks["reference" if WHY_NO_CPU else "cpu"].startswith("runs")


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"stats": ("sum", "max")}, "stats"),
        ({"stats": "sum"}, "stats"),
        ({"stats": ()}, "stats"),
        ({"a": torch.zeros(2, 3, 8)}, "a: has shape"),
        ({"a": torch.zeros(2, 3, 8, 8, dtype=torch.int64)}, "a: got dtype"),
        ({"delta": torch.zeros(2, 4, 6, 6, dtype=torch.float64)}, "delta: got dtype"),
        ({"delta": torch.zeros(2, 4, 6, 7)}, "delta"),
        ({"delta": torch.zeros(3, 4, 6, 6)}, "delta"),
        ({"delta": torch.zeros(2, 4, 6, 6, device="meta")}, "delta: is on meta"),
        ({"groups": 2}, "groups"),
        ({"groups": 0}, "groups"),
        ({"kernel_size": (3,)}, "kernel_size"),
        ({"kernel_size": (9, 1)}, "kernel_size"),
        ({"kernel_size": None}, "a: has shape"),
        ({"kernel_size": None, "groups": 3}, "kernel_size"),
        ({"stride": (0, 1)}, "stride"),
        ({"padding": (-1, 0)}, "padding"),
        ({"dilation": (1, 1.5)}, "dilation"),
        ({"a": torch.zeros(2, 4, 3), "delta": torch.zeros(2, 5, 3), "kernel_size": None}, "delta"),
    ],
)
def test_bad_input_is_named(change, named):
    arguments = {
        "a": torch.zeros(2, 3, 8, 8),
        "delta": torch.zeros(2, 4, 6, 6),
        "stats": ("sum",),
        "kernel_size": (3, 3),
        **change,
    }
    expected = UnknownNameError if change.get("stats") == ("sum", "max") else InputError
    with pytest.raises(expected, match=named):
        layer_grad_stats(arguments.pop("a"), arguments.pop("delta"), arguments.pop("stats"), **arguments)
