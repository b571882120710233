"""The reconstruction objective against automatic differentiation in float64, on every way and every backend."""

from __future__ import annotations

import importlib

import pytest
import torch
from torch import Tensor, nn

import fastmem
from fastmem.errors import InputError, UnknownNameError
from fastmem.ops.kkt_residual import KktNetwork, KktResidual, kkt_residual
from fastmem.ops.triton import interpreted

S, M, D = 3, 7, 12

# Widths of hidden layers, outputs, and which layers have a bias.
NETWORKS = {
    "paper": ((30, 40), 1, (True, False, False)),
    "one hidden": ((30,), 1, (True, False)),
    "three hidden, biases": ((30, 20, 25), 4, (True, True, True, True)),
    "bias at the end": ((30, 40), 3, (False, False, True)),
}
WAYS = [
    ("reference", "direct"),
    ("reference", "gram"),
    ("reference", "auto"),
    ("cpu", "gram"),
    ("cpu", "auto"),
    ("triton", "gram"),
]


def perceptron(name: str, dtype: torch.dtype = torch.float64, inputs: int = D) -> nn.Sequential:
    hidden, outputs, biases = NETWORKS[name]
    torch.manual_seed(0)
    layers: list[nn.Module] = [nn.Flatten()]
    width = inputs
    for size, bias in zip((*hidden, outputs), biases, strict=True):
        layers += [nn.Linear(width, size, bias=bias), nn.ReLU()]
        width = size
    return nn.Sequential(*layers[:-1]).to(dtype).eval()


def problem(name: str, dtype: torch.dtype = torch.float64) -> tuple[nn.Sequential, Tensor, Tensor, dict[str, object]]:
    model = perceptron(name, dtype)
    outputs = NETWORKS[name][1]
    options: dict[str, object] = {"alpha": torch.tensor([5.0, 20.0, 100.0])}
    x, c = torch.randn(S, M, D, dtype=torch.float64).to(dtype), torch.randn(S, M, dtype=torch.float64).to(dtype)
    if outputs > 1:
        options["labels"] = torch.randint(outputs, (S, M))
    return model, x, c, options


def by_hand(model: nn.Sequential, x: Tensor, c: Tensor, alpha: float, labels: Tensor | None) -> tuple[Tensor, ...]:
    """Losses and gradients of one problem by autograd, with a graph that shares nothing with the package."""

    def relu(z: Tensor) -> Tensor:
        # Its value is relu(z); its derivative, and what differentiating that gives, is sigmoid(alpha z).
        return Slope.apply(z)

    class Slope(torch.autograd.Function):
        @staticmethod
        def forward(ctx, z):
            ctx.save_for_backward(z)
            return z * (z > 0)

        @staticmethod
        def backward(ctx, upstream):
            (z,) = ctx.saved_tensors
            return upstream / (1 + torch.exp(-alpha * z))

    x, c = x.clone().requires_grad_(), c.clone().requires_grad_()
    weights = [parameter.detach().clone().requires_grad_() for parameter in model.parameters()]
    remaining, a = list(weights), x
    linear = [layer for layer in model if isinstance(layer, nn.Linear)]
    for layer in linear:
        a = a @ remaining.pop(0).T
        if layer.bias is not None:
            a = a + remaining.pop(0)
        if layer is not linear[-1]:
            a = relu(a)
    total = torch.zeros((), dtype=x.dtype)
    for row, scale, at in zip(a, c, range(len(x)), strict=True):
        if labels is None:
            total = total + scale * row[0]
        else:
            y = int(labels[at])
            rival = max((k for k in range(len(row)) if k != y), key=lambda k: float(row[k]))
            total = total + scale * (row[y] - row[rival])
    sums = torch.autograd.grad(total, weights, create_graph=True)
    losses = torch.stack([(weight.detach() - each).square().sum() for weight, each in zip(weights, sums, strict=True)])
    return losses.detach(), *torch.autograd.grad(losses.sum(), [x, c])


def skip_without(backend: str) -> None:
    if backend != "reference" and (reason := fastmem.explain("kkt_residual").remarks[backend]).startswith("not avail"):
        pytest.skip(reason)
    if backend == "triton" and not interpreted():
        pytest.skip("Triton's kernels take CPU tensors in its interpreter only (TRITON_INTERPRET=1)")


def error(found: Tensor, expected: Tensor) -> float:
    return float((found.double() - expected.double()).norm() / expected.double().norm())


def close(found: KktResidual, expected: tuple[Tensor, ...], index: int, tolerance: float) -> None:
    losses, grad_x, grad_c = expected
    assert error(torch.stack([each[index] for each in found.per_parameter.values()]), losses) <= tolerance
    assert error(found.grad_inputs[index], grad_x) <= tolerance
    assert error(found.grad_coefficients[index], grad_c) <= tolerance


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize(("backend", "method"), [("reference", "autograd"), *WAYS])
def test_every_way_gives_the_gradients_of_autograd_in_float64(name: str, backend: str, method: str) -> None:
    skip_without(backend)
    model, x, c, options = problem(name)
    with fastmem.use_backend(backend):
        found = kkt_residual(model, x, c, method=method, **options)
    for index in range(S):
        labels = options["labels"][index] if "labels" in options else None
        expected = by_hand(model, x[index], c[index], float(options["alpha"][index]), labels)
        close(found, expected, index, 1e-10)


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize(("backend", "method"), [("reference", "autograd"), *WAYS])
def test_float32_is_within_1e_4_of_float64_autograd(name: str, backend: str, method: str) -> None:
    skip_without(backend)
    model, x, c, options = problem(name, torch.float32)
    with fastmem.use_backend(backend):
        found = kkt_residual(model, x, c, method=method, **options)
    exact = kkt_residual(perceptron(name, torch.float32).double(), x.double(), c.double(), method="autograd", **options)
    assert error(found.grad_inputs, exact.grad_inputs) <= 1e-4
    assert error(found.grad_coefficients, exact.grad_coefficients) <= 1e-4
    assert error(found.loss, exact.loss) <= 1e-5


@pytest.mark.parametrize(("backend", "method"), [("reference", "autograd"), ("reference", "direct"), ("cpu", "gram")])
def test_the_gradients_are_those_of_the_loss(backend: str, method: str) -> None:
    # A slope so gentle that the modified derivative is smooth, and candidates whose units are all active: there the
    # modified gradient by the input, which also passes through the outer ReLU, must be what finite differences see only
    # up to that ReLU; by the coefficients it is exact.
    skip_without(backend)
    model, x, c, _ = problem("paper")
    x, c = x[0], c[0]

    class Loss(torch.autograd.Function):
        @staticmethod
        def forward(ctx, c):
            found = kkt_residual(model, x, c.detach(), alpha=3.0, method=method)
            ctx.save_for_backward(found.grad_coefficients)
            return found.loss

        @staticmethod
        def backward(ctx, upstream):
            return upstream * ctx.saved_tensors[0]

    with fastmem.use_backend(backend):
        assert torch.autograd.gradcheck(Loss.apply, (c.clone().requires_grad_(),))


def test_the_gradient_by_inputs_is_the_loss_s_own_where_no_derivative_is_replaced() -> None:
    model, x, c, _ = problem("paper")
    x, c = x[0], c[0]
    found = kkt_residual(model, x, c, method="direct")
    direction = torch.randn_like(x)
    step = 1e-6
    ends = [kkt_residual(model, x + sign * step * direction, c, method="direct").loss for sign in (1, -1)]
    assert float((ends[0] - ends[1]) / (2 * step)) == pytest.approx(
        float((found.grad_inputs * direction).sum()), rel=1e-6
    )


def test_a_weight_that_is_the_sum_of_its_gradients_has_no_residual() -> None:
    # One linear unit: the gradient of f(x) = w x by w is x, so w = sum c_i x_i has residual 0.
    x, c = torch.tensor([[1.0, 2.0], [3.0, -1.0]]).double(), torch.tensor([2.0, 0.5]).double()
    model = nn.Sequential(nn.Linear(2, 1, bias=False)).double().eval()
    with torch.no_grad():
        model[0].weight.copy_(c @ x)
    found = kkt_residual(model, x, c)
    assert float(found.loss) == pytest.approx(0, abs=1e-20)
    assert float(found.grad_inputs.abs().max()) == pytest.approx(0, abs=1e-12)
    moved = kkt_residual(model, x, c + torch.tensor([0.1, 0.0]).double())
    # R = w - G = -0.1 x_1, |R|^2 = 0.01 * 5; dL/dc_2 = -2 <R, x_2> = 0.2 <x_1, x_2> = 0.2
    assert float(moved.loss) == pytest.approx(0.05)
    assert moved.grad_coefficients.tolist() == pytest.approx([1.0, 0.2])


@pytest.mark.parametrize("backend", ["reference", "cpu"])
def test_problems_of_a_batch_do_not_touch_each_other(backend: str) -> None:
    skip_without(backend)
    model, x, c, options = problem("paper")
    with fastmem.use_backend(backend):
        together = kkt_residual(model, x, c, method="gram", **options)
        for index in range(S):
            alone = kkt_residual(model, x[index], c[index], method="gram", alpha=float(options["alpha"][index]))
            torch.testing.assert_close(together.grad_inputs[index], alone.grad_inputs, rtol=1e-12, atol=1e-12)
            torch.testing.assert_close(together.loss[index], alone.loss, rtol=1e-12, atol=1e-12)
        x[1] = torch.nan
        broken = kkt_residual(model, x, c, method="gram", **options)
    assert broken.loss.isnan().tolist() == [False, True, False]
    torch.testing.assert_close(broken.grad_inputs[2], together.grad_inputs[2], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("m", [1, 5, 6, 20, 31, 250])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_kernels_at_odd_sizes(m: int, dtype: torch.dtype) -> None:
    # Beyond one block of rows and of depth, with panels that are not full, symmetric products cut at the diagonal.
    skip_without("cpu")
    torch.manual_seed(m)
    model = nn.Sequential(nn.Linear(521, 263), nn.ReLU(), nn.Linear(263, 301, bias=False), nn.ReLU(), nn.Linear(301, 1))
    model = model.to(dtype).eval()
    x, c = torch.randn(2, m, 521, dtype=dtype), torch.randn(2, m, dtype=dtype)
    found = {}
    for backend in ("reference", "cpu"):
        with fastmem.use_backend(backend):
            found[backend] = kkt_residual(model, x, c, alpha=11.0, method="gram" if backend == "cpu" else "direct")
    tolerance = 1e-12 if dtype is torch.float64 else 3e-5
    assert error(found["cpu"].grad_inputs, found["reference"].grad_inputs) <= tolerance
    assert error(found["cpu"].grad_coefficients, found["reference"].grad_coefficients) <= tolerance
    assert error(found["cpu"].loss, found["reference"].loss) <= tolerance


def test_the_same_bits_on_every_instruction_set_s_threads() -> None:
    skip_without("cpu")
    model, x, c, options = problem("paper", torch.float32)
    before = torch.get_num_threads()
    results = []
    try:
        for threads in (1, 2, 4):
            torch.set_num_threads(threads)
            with fastmem.use_backend("cpu"):
                results.append(kkt_residual(model, x, c, method="gram", **options).grad_inputs)
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(results[0], each) for each in results[1:])


def test_every_instruction_set_computes_the_same() -> None:
    skip_without("cpu")
    native = importlib.import_module("fastmem._cpu")
    model, x, c, options = problem("paper")
    expected = kkt_residual(model, x, c, method="autograd", **options)
    chosen = native.isa()
    try:
        for isa in native.isas():
            native.set_isa(isa)
            with fastmem.use_backend("cpu"):
                found = kkt_residual(KktNetwork.of(model), x, c, **options)
            assert error(found.grad_inputs, expected.grad_inputs) <= 1e-10, isa
    finally:
        native.set_isa(chosen)


def test_what_float32_costs_where_the_residual_cancels() -> None:
    # Targets that the sums of gradients reach up to 1e-4: seven digits of the sums, three of the residual.
    model = perceptron("one hidden", torch.float32, 40)
    torch.manual_seed(3)
    x, c = torch.randn(10, 40), torch.rand(10)
    exact_model = perceptron("one hidden", torch.float32, 40).double()
    parameters = list(exact_model.parameters())
    z = x.double() @ parameters[0].T + parameters[1]
    d = c.double()[:, None] * parameters[2] * torch.sigmoid(20 * z)
    sums = {"1.weight": d.T @ x.double(), "1.bias": d.sum(0), "3.weight": c.double()[None] @ z.relu()}
    targets = {name: (value + 1e-4 * torch.randn_like(value)).detach().float() for name, value in sums.items()}
    wide = {name: value.double() for name, value in targets.items()}
    exact = kkt_residual(exact_model, x.double(), c.double(), alpha=20.0, targets=wide, method="autograd")
    name = "1.weight"
    assert float(exact.per_parameter[name]) < 1e-6 * float(wide[name].square().sum())

    def found(method: str, precision: str) -> KktResidual:
        return kkt_residual(model, x, c, alpha=20.0, targets=targets, method=method, precision=precision)

    loss = {
        (method, precision): error(found(method, precision).per_parameter[name], exact.per_parameter[name])
        for method in ("gram", "direct")
        for precision in ("native", "compensated")
    }
    # By Gram matrices the loss is a difference of squares and loses every digit; sums in float64 keep what rounding of
    # their float32 operands leaves, and the direct form subtracts before it squares.
    assert loss["gram", "native"] > 0.02
    assert loss["gram", "compensated"] < loss["gram", "native"] / 4
    assert max(loss["direct", "native"], loss["direct", "compensated"]) < 0.01
    gradients = {
        precision: error(found("gram", precision).grad_inputs, exact.grad_inputs)
        for precision in ("native", "compensated")
    }
    assert gradients["native"] < 0.05
    assert gradients["compensated"] < gradients["native"]


class Small(nn.Module):
    """A convolution, a functional ReLU, biases everywhere, batch normalisation in eval mode."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.top = nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.top(torch.relu(self.norm(self.conv(x))).flatten(1))


def test_any_network_goes_by_double_backward() -> None:
    torch.manual_seed(0)
    model = Small().double().eval()
    x, c, labels = torch.randn(5, 1, 4, 4).double(), torch.randn(5).double(), torch.tensor([0, 1, 2, 0, 1])
    found = kkt_residual(model, x, c, labels=labels, alpha=7.0)
    assert set(found.per_parameter) == {name for name, _ in model.named_parameters()}
    step, direction = 1e-6, torch.randn(5).double()
    ends = [kkt_residual(model, x, c + sign * step * direction, labels=labels, alpha=7.0).loss for sign in (1, -1)]
    slope = float((ends[0] - ends[1]) / (2 * step))
    assert slope == pytest.approx(float((found.grad_coefficients * direction).sum()), rel=1e-6)
    plain = kkt_residual(model, x, c, labels=labels)
    assert error(plain.grad_inputs, found.grad_inputs) > 1e-3  # the functional ReLU was replaced, too
    said = str(fastmem.explain("kkt_residual", model, x, c, labels=labels))
    assert said.startswith("kkt_residual(Small, 1 x 5 candidates [1, 4, 4] float64)")
    assert "neither a fastmem MLP nor a Sequential" in said


def test_targets_other_than_the_parameters() -> None:
    model, x, c, options = problem("paper")
    targets = {name: 0.3 * torch.randn_like(value) for name, value in model.named_parameters()}
    expected = kkt_residual(model, x, c, targets=targets, method="autograd", **options)
    for method in ("direct", "gram", "auto"):
        found = kkt_residual(model, x, c, targets=targets, method=method, **options)
        assert error(found.grad_inputs, expected.grad_inputs) <= 1e-10
        assert error(found.loss, expected.loss) <= 1e-10


def test_a_fastmem_mlp_has_a_closed_form_and_a_hook_takes_it_away() -> None:
    from fastmem.models.mlp import MLP

    model = MLP((1, 3, 4), 3, hidden=(20,)).eval()
    assert len(KktNetwork.of(model).layers) == 2
    model.layers[1].register_forward_hook(lambda module, inputs, output: output + 1)
    assert "hook" in KktNetwork.of(model).no_closed_form
    assert KktNetwork.of(nn.Sequential(nn.Linear(3, 2), nn.GELU(), nn.Linear(2, 1))).no_closed_form


def frozen_first() -> nn.Sequential:
    model = perceptron("paper")
    model[1].weight.requires_grad_(False)
    return model


def test_frozen_parameters_take_no_part() -> None:
    _, x, c, options = problem("paper")
    found = kkt_residual(frozen_first(), x, c, **options)
    assert "1.weight" not in found.per_parameter
    assert "1.bias" in found.per_parameter


BAD: dict[str, tuple[dict[str, object], str]] = {
    "no candidates": ({"inputs": torch.zeros(0, D).double(), "coefficients": torch.zeros(0).double()}, "no candidates"),
    "another width": ({"inputs": torch.zeros(M, D + 1).double(), "coefficients": torch.zeros(M).double()}, "13 values"),
    "another dtype": ({"inputs": torch.zeros(M, D), "coefficients": torch.zeros(M).double()}, "float64"),
    "shapes apart": ({"coefficients": torch.zeros(M + 1).double()}, "for coefficients"),
    "labels of one output": ({"labels": torch.zeros(M, dtype=torch.int64)}, "one output"),
    "alpha below 0": ({"alpha": -1.0}, "above 0"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_refused_by_name(name: str) -> None:
    changes, words = BAD[name]
    arguments: dict[str, object] = {
        "inputs": torch.randn(M, D).double(),
        "coefficients": torch.randn(M).double(),
        "alpha": 10.0,
    }
    with pytest.raises(InputError, match=words):
        kkt_residual(perceptron("paper"), **(arguments | changes))


def test_networks_that_cannot_be_attacked_are_refused() -> None:
    x, c = torch.randn(M, D).double(), torch.randn(M).double()
    training = nn.Sequential(nn.Linear(D, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 1)).double()
    with pytest.raises(InputError, match="statistics of the batch"):
        kkt_residual(training, x, c)
    broken = perceptron("paper")
    with torch.no_grad():
        broken[1].weight[0, 0] = torch.nan
    with pytest.raises(InputError, match=r"1\.weight has values that are not finite"):
        kkt_residual(broken, x, c)
    with pytest.raises(InputError, match="trainable"):
        kkt_residual(nn.Flatten(), x, c)
    with pytest.raises(InputError, match="outputs"):
        kkt_residual(perceptron("bias at the end"), x, c, labels=torch.full((M,), 3))
    with pytest.raises(UnknownNameError):
        kkt_residual(perceptron("paper"), x, c, method="magic")
    with pytest.raises(InputError, match="autograd"):
        kkt_residual(Small().eval(), torch.zeros(1, 1, 4, 4), torch.zeros(1), method="gram")
