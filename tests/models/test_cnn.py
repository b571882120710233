"""The two-convolution network has the published sizes, and pooling before the ReLU changes nothing."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from fastmem.errors import InputError
from fastmem.models import count_parameters
from fastmem.models.cnn import CNN


@pytest.mark.parametrize(("shape", "width"), [((3, 32, 32), 2048), ((1, 28, 28), 1568), ((1, 8, 8), 128)])
def test_the_hidden_layer_reads_the_published_number_of_values(shape: tuple[int, ...], width: int) -> None:
    model = CNN(shape, 10)
    assert model.hidden.in_features == width
    convolutions = 25 * shape[0] * 32 + 32 + 25 * 32 * 32 + 32
    assert count_parameters(model) == convolutions + width * 128 + 128 + 128 * 10 + 10


def published(model: CNN, x: torch.Tensor) -> torch.Tensor:
    """The same network in the order of the papers: convolution, ReLU, pooling."""
    for convolution in (model.conv1, model.conv2):
        x = F.max_pool2d(F.relu(convolution(x)), 2)
    return model.output(F.relu(model.hidden(x.flatten(1))))


def test_equals_the_published_order_with_its_gradients() -> None:
    torch.manual_seed(0)
    model, x = CNN((2, 12, 9), 4), torch.randn(6, 2, 12, 9)
    labels = torch.tensor([0, 1, 2, 3, 0, 1])
    logits, expected = model(x), published(model, x)
    assert torch.equal(logits, expected)
    parameters = list(model.parameters())
    ours = torch.autograd.grad(F.cross_entropy(logits, labels), parameters)
    theirs = torch.autograd.grad(F.cross_entropy(expected, labels), parameters)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-7)


def test_equals_the_published_order_in_float64_where_a_kernel_does_three_steps_in_one() -> None:
    model, x = CNN((2, 12, 9), 4).double(), torch.randn(6, 2, 12, 9, dtype=torch.float64)
    x, labels = x.contiguous(memory_format=torch.channels_last), torch.tensor([0, 1, 2, 3, 0, 1])
    parameters = list(model.parameters())
    ours, theirs = (
        torch.autograd.grad(F.cross_entropy(logits, labels), parameters) for logits in (model(x), published(model, x))
    )
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-13)


def test_hooks_on_a_convolution_see_and_replace_what_it_gives() -> None:
    model, x = CNN((1, 8, 8), 3), torch.randn(5, 1, 8, 8)
    hook = model.conv2.register_forward_hook(lambda module, inputs, output: torch.zeros_like(output))
    assert torch.equal(model(x)[0], model(x)[1])
    hook.remove()
    assert not torch.equal(model(x)[0], model(x)[1])


def test_refuses_images_that_pool_to_nothing() -> None:
    with pytest.raises(InputError, match=r"\[1, 3, 8\].*at least 4 x 4"):
        CNN((1, 3, 8), 10)


def test_batch_norm_follows_the_published_order_too() -> None:
    model, x = CNN((1, 8, 8), 3, channels=4, hidden=8, batch_norm=True), torch.randn(5, 1, 8, 8)
    torch.nn.init.constant_(model.norm1.weight, -1.0)  # turns the order round: pooling before it would differ
    expected = F.max_pool2d(F.relu(model.norm1(model.conv1(x))), 2)
    expected = F.max_pool2d(F.relu(model.norm2(model.conv2(expected))), 2)
    expected = model.output(F.relu(model.norm3(model.hidden(expected.flatten(1)))))
    torch.testing.assert_close(model(x), expected)


def test_dropout_is_for_training_only() -> None:
    model, x = CNN((1, 8, 8), 3, channels=4, hidden=8, dropout=0.5), torch.randn(5, 1, 8, 8)
    assert not torch.equal(model(x), model(x))
    model.eval()
    assert torch.equal(model(x), model(x))
    with pytest.raises(InputError, match="dropout"):
        CNN((1, 8, 8), 3, dropout=1.0)
