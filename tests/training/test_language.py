"""Language models: training, loading from a folder, and what is asked of them, on a network of a few hundred weights."""

from __future__ import annotations

import functools
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from fastmem.attacks.membership.text import min_k, negative_loss, zlib_ratio
from fastmem.errors import InputError
from fastmem.models.language import build_language_model
from fastmem.models.shape import LanguageShape
from fastmem.signals.language import STATISTICS, query_language_model
from fastmem.training import Recipe
from fastmem.training.language import train_language_models

SHAPE = LanguageShape(layers=1, width=16, heads=2, block=12)
RECIPE = Recipe(optimizer="adamw", learning_rate=0.01, epochs=30, batch_size=4)


@pytest.fixture(scope="module", autouse=True)
def _needs_transformers() -> None:
    try:
        build_language_model(SHAPE, 20, 0)
    except InputError as error:
        pytest.skip(str(error))


@pytest.fixture
def tokens() -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(0).integers(0, 20, (12, 12)))


def test_a_model_learns_its_own_blocks_and_is_decided_by_its_seed(tokens: torch.Tensor) -> None:
    keep = np.arange(12)[None] < 6
    build = functools.partial(build_language_model, SHAPE, 20)
    one, other = (train_language_models(build, tokens, keep, RECIPE, [7])[0] for _ in range(2))
    assert all(torch.equal(one.state[name], other.state[name]) for name in one.state)
    assert one.history["train_loss"][-1] < 0.5 * one.history["train_loss"][0]
    model = build(0)
    model.load_state_dict(one.state)
    answers = query_language_model(model, tokens, ("penultimate", "logits"))
    loss = answers.loss
    assert loss[:6].max() < loss[6:].min()  # random tokens can only be known by heart
    with torch.no_grad():
        logits = model(tokens).double()
    log_p = logits[:, :-1].log_softmax(dim=2)
    expected = log_p.gather(2, tokens[:, 1:, None])[:, :, 0]
    np.testing.assert_allclose(answers.log_p, expected, atol=1e-4)
    np.testing.assert_allclose(answers.entropy, -(log_p.exp() * log_p).sum(dim=2).mean(dim=1), atol=1e-4)
    np.testing.assert_allclose(answers.features["logits"], logits.mean(dim=1), atol=1e-4)
    assert answers.features["penultimate"].shape == (12, 16)
    assert answers.statistics.shape == (12, len(STATISTICS))
    np.testing.assert_allclose(negative_loss(answers.log_p), -loss, atol=1e-6)
    np.testing.assert_allclose(min_k(answers.log_p, 1.0), -loss, atol=1e-6)
    np.testing.assert_allclose(min_k(answers.log_p, 0.01), expected.min(dim=1).values, atol=1e-4)
    np.testing.assert_allclose(zlib_ratio(answers.log_p, np.full(12, 5)), -loss * 11 / 5, rtol=1e-5)


def test_a_folder_is_read_as_data(tmp_path: Path) -> None:
    model = build_language_model(SHAPE, 20, 3)
    model.network.save_pretrained(tmp_path)  # type: ignore[operator]
    loaded = build_language_model(LanguageShape(block=12, init=str(tmp_path)), 20, 0)
    tokens = torch.arange(12)[None]
    with torch.no_grad():
        torch.testing.assert_close(loaded(tokens), model(tokens))
    with pytest.raises(InputError, match="its vocabulary has 20"):
        build_language_model(LanguageShape(block=12, init=str(tmp_path)), 30, 0)
    with pytest.raises(InputError, match="takes 12"):
        build_language_model(LanguageShape(block=64, init=str(tmp_path)), 20, 0)
    (tmp_path / "model.safetensors").rename(tmp_path / "pytorch_model.bin")
    with pytest.raises(InputError, match=r"no model\.safetensors"):
        build_language_model(LanguageShape(block=12, init=str(tmp_path)), 20, 0)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama"}))
    with pytest.raises(InputError, match="type 'llama'"):
        build_language_model(LanguageShape(block=12, init=str(tmp_path)), 20, 0)


def test_what_cannot_be_is_refused(tokens: torch.Tensor) -> None:
    build = functools.partial(build_language_model, SHAPE, 20)
    keep = np.ones((1, 12), dtype=bool)
    with pytest.raises(InputError, match=r"text_recipe\.patience"):
        train_language_models(build, tokens, keep, Recipe(patience=2), [0])
    with pytest.raises(InputError, match="a row a model"):
        train_language_models(build, tokens, keep[:, :5], RECIPE, [0])
    with pytest.raises(InputError, match="at least 2"):
        train_language_models(build, tokens, np.arange(12)[None] < 1, RECIPE, [0])
    with pytest.raises(InputError, match="multiple of the heads"):
        LanguageShape(width=10, heads=4)
    with pytest.raises(InputError, match="above 0 to 1"):
        min_k(np.zeros((2, 3)), 0.0)
