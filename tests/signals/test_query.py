"""Asking a model: the same answers as one record at a time in eval mode, and the model left as it was."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fastmem.data.transforms import make_queries, normalise
from fastmem.errors import InputError
from fastmem.models import build_model
from fastmem.signals import STAT_NAMES, Signals, query_model, query_models

N, C = 23, 5


class Network(nn.Module):
    """Batch norm and dropout: in training mode every answer would be random and depend on its neighbours."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Dropout(0.5))
        self.head = nn.Linear(4 * 4 * 6, C)
        self.body[1].running_mean.normal_()

    def forward(self, batch: Tensor) -> Tensor:
        return self.head(self.body(batch))


@pytest.fixture
def records() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    x = torch.randint(0, 256, (N, 1, 6, 8), generator=generator, dtype=torch.uint8)
    return x, torch.randint(0, C, (N,), generator=generator)


NORMALISATION = (torch.tensor([0.5]), torch.tensor([0.25]))


def one_at_a_time(model: nn.Module, x: Tensor) -> np.ndarray:
    """Oracle: logits [N, A, C], a forward pass per record and query."""
    model = model.eval()
    with torch.no_grad():
        rows = [[model(normalise(query(x[n : n + 1]), *NORMALISATION))[0] for query in QUERIES] for n in range(len(x))]
    return torch.stack([torch.stack(row) for row in rows]).numpy()


QUERIES = make_queries("flip+shift")


@pytest.mark.parametrize("batch_size", [1, 7, N, 1000])
def test_every_query_of_every_record(records: tuple[Tensor, Tensor], batch_size: int) -> None:
    x, y = records
    stats = [*STAT_NAMES, "margin@2", "logits"]
    found = query_model(Network(), x, y, QUERIES, stats, NORMALISATION, batch_size)
    logits = one_at_a_time(Network(), x)
    assert list(found) == stats
    assert found["logits"].dtype == np.float32
    np.testing.assert_allclose(found["logits"], logits, rtol=1e-4, atol=1e-4)  # batches sum in another order
    expected = Signals(y, np.zeros((1, N), bool), logits=found["logits"][None])
    for name in stats[:-1]:
        assert found[name].dtype == np.float64
        np.testing.assert_allclose(found[name], expected.stat(name)[0], rtol=1e-12, atol=1e-12, err_msg=name)


def test_only_what_is_asked_for(records: tuple[Tensor, Tensor]) -> None:
    found = query_model(Network(), *records, QUERIES[:1], ["entropy", "loss@2.0"], NORMALISATION)
    assert {name: values.shape for name, values in found.items()} == {"entropy": (N, 1), "loss@2": (N, 1)}


def test_the_model_is_left_as_it_was(records: tuple[Tensor, Tensor]) -> None:
    model = Network().train()
    model.body[1].eval()  # a frozen batch norm inside a training network
    before = {name: value.clone() for name, value in model.state_dict().items()}
    query_model(model, *records, QUERIES, ["margin"], NORMALISATION)
    assert [module.training for module in model.modules()] == [
        not isinstance(module, nn.BatchNorm2d) for module in model.modules()
    ]
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name
    assert all(parameter.grad is None for parameter in model.parameters())


def test_flags_come_back_after_an_error(records: tuple[Tensor, Tensor]) -> None:
    model = Network().train()
    model.head = nn.Linear(3, C)  # does not fit
    with pytest.raises(RuntimeError):
        query_model(model, *records, QUERIES, ["margin"], NORMALISATION)
    assert all(module.training for module in model.modules())


def test_training_mode_would_be_caught(records: tuple[Tensor, Tensor]) -> None:
    class Stubborn(Network):
        def eval(self) -> "Stubborn":
            return self

    found = query_model(Stubborn(), *records, QUERIES[:1], ["logits"], NORMALISATION)["logits"]
    assert np.abs(found - one_at_a_time(Network(), records[0])[:, :1]).max() > 0.1


def test_autocast_does_not_reach_the_model(records: tuple[Tensor, Tensor]) -> None:
    plain = query_model(Network(), *records, QUERIES, ["margin"], NORMALISATION)["margin"]
    with torch.autocast("cpu", torch.bfloat16):
        under = query_model(Network(), *records, QUERIES, ["margin"], NORMALISATION)["margin"]
    np.testing.assert_array_equal(under, plain)


def test_features_without_normalisation() -> None:
    x, y = torch.randn(6, 3, generator=torch.Generator().manual_seed(0)), torch.arange(6) % 2
    model = nn.Linear(3, 2).double()
    found = query_model(model.float(), x, y, make_queries("none"), ["hinge", "top3"])
    difference = model(x).detach().diff(dim=1)[:, 0]
    np.testing.assert_allclose(found["hinge"][:, 0], torch.where(y == 1, difference, -difference), rtol=1e-6)
    assert (found["top3"][:, 0, 2] == 0).all()  # there is no third class


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_models_of_other_precision(dtype: torch.dtype) -> None:
    x, y = torch.randn(6, 3, generator=torch.Generator().manual_seed(0)).to(dtype), torch.arange(6) % 4
    found = query_model(nn.Linear(3, 4).to(dtype), x, y, make_queries("none"), ["margin", "logits"])
    assert found["logits"].dtype == (
        np.float32 if dtype == torch.bfloat16 else torch.zeros(0, dtype=dtype).numpy().dtype
    )
    expected = Signals(y, np.zeros((1, 6), bool), logits=found["logits"][None]).stat("margin")[0]
    np.testing.assert_allclose(found["margin"], expected, rtol=1e-12)  # float64 statistics of low-precision logits


class Answers(nn.Module):
    """Answers with a fixed table of logits, a row per record; the record is its own number."""

    def __init__(self, table: Tensor) -> None:
        super().__init__()
        self.table = table

    def forward(self, batch: Tensor) -> Tensor:
        return self.table[batch[:, 0].long()]


def test_broken_answers_are_counted_and_located() -> None:
    table = torch.zeros(10, 3)
    table[4, 1], table[7, 0], table[9, 2] = float("nan"), float("inf"), float("-inf")
    x, y = torch.arange(10.0)[:, None], torch.zeros(10, dtype=torch.int64)
    with pytest.raises(InputError) as raised:
        query_model(Answers(table), x, y, make_queries("none") * 2, ["margin"], batch_size=4)
    assert str(raised.value) == (
        "model: NaN or infinite logits in 6 of 20 answers, first for record 4, query 0; "
        "the training has diverged: lower the learning rate, or leave this model out"
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"y": torch.zeros(9, dtype=torch.int64)}, "y: 9 labels for 10 records"),
        ({"y": torch.zeros(10)}, "y: torch.float32 of shape (10,); give int64"),
        ({"y": torch.full((10,), 3)}, "y: label 3 for a model of 3 classes; give 0..2"),
        ({"y": torch.full((10,), -1)}, "y: label -1"),
        ({"queries": []}, "queries: none given"),
        ({"stats": []}, "stats: none given"),
        ({"stats": ["margn"]}, "did you mean 'margin'"),
        ({"batch_size": 0}, "batch_size: 0"),
        ({"model": nn.Flatten(0)}, "model: answers a batch of 10 with (10,); return logits [B, C]"),
        ({"model": Answers(torch.zeros(10, 3, dtype=torch.int64))}, "model: answers in torch.int64"),
        ({"model": nn.Linear(1, 3), "device": "meta"}, "device: meta, but the model is on cpu; move it with"),
    ],
)
def test_bad_input_is_named(change: dict, message: str) -> None:
    arguments = {
        "model": Answers(torch.zeros(10, 3)),
        "x": torch.arange(10.0)[:, None],
        "y": torch.zeros(10, dtype=torch.int64),
        "queries": make_queries("none"),
        "stats": ["margin"],
        **change,
    }
    with pytest.raises(InputError) as raised:
        query_model(**arguments)
    assert message in str(raised.value)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_on_a_gpu(records: tuple[Tensor, Tensor]) -> None:
    stats = ["margin", "entropy", "top3", "modified_entropy", "logits"]
    on_gpu = query_model(Network().cuda(), *records, QUERIES, stats, NORMALISATION, batch_size=5)
    on_cpu = query_model(Network(), *records, QUERIES, stats, NORMALISATION)
    for name in stats:
        np.testing.assert_allclose(on_gpu[name], on_cpu[name], rtol=1e-3, atol=1e-3)


def test_several_models_in_one_pass_answer_as_each_alone_bit_for_bit(records: tuple[Tensor, Tensor]) -> None:
    x, y = records
    models = [build_model("cnn", x.shape[1:], C, seed, channels=4, hidden=8) for seed in range(2)]
    models.append(build_model("mlp", x.shape[1:], C, 2, hidden=(6,)))
    seen = 0

    def counted(batch: Tensor) -> Tensor:
        nonlocal seen
        seen += 1
        return batch.flip(-1)

    found = query_models(models, x, y, [QUERIES[0], counted], ["margin", "logits"], NORMALISATION, batch_size=8)
    assert seen == 3  # batches, whatever the number of models
    for model, answers in zip(models, found, strict=True):
        alone = query_model(model, x, y, [QUERIES[0], counted], ["margin", "logits"], NORMALISATION, batch_size=8)
        for name, values in alone.items():
            np.testing.assert_array_equal(answers[name], values)
    assert not np.array_equal(found[0]["logits"], found[1]["logits"])


def test_no_model_or_models_on_several_devices_are_refused(records: tuple[Tensor, Tensor]) -> None:
    with pytest.raises(InputError, match="none given"):
        query_models([], *records, QUERIES, ["margin"])
    with pytest.raises(InputError, match="one device"):
        query_models([Network(), Network().to("meta")], *records, QUERIES, ["margin"])


def test_a_network_that_prefers_channels_last_gets_it_and_says_the_same(records: tuple[Tensor, Tensor]) -> None:
    x, y = records
    model = build_model("cnn", x.shape[1:], C, 0, channels=4, hidden=8)
    formats: list[bool] = []
    model.conv2.register_forward_hook(
        lambda module, given, result: formats.append(result.is_contiguous(memory_format=torch.channels_last))
    )
    found = query_model(model, x, y, QUERIES, ["logits"], NORMALISATION)["logits"]
    assert all(formats)
    np.testing.assert_allclose(found, one_at_a_time(model, x), rtol=1e-4, atol=1e-5)
