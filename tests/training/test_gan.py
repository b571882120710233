"""A DCGAN learns what its records look like, and a killed training ends with the bytes of an undisturbed one."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from fastmem.errors import InputError, StoreError
from fastmem.training import load_checkpoint
from fastmem.training.gan import GanRecipe, load_gan, sample_images, train_gan

RECIPE = GanRecipe(steps=12, batch_size=8, latent=8, width=4, grids=2, checkpoint_every=5)


@pytest.fixture
def halves() -> torch.Tensor:
    """Images that are dark on the left and bright on the right."""
    x = torch.zeros(64, 1, 8, 8)
    x[..., 4:] = 200
    return (x + 20 * torch.rand(x.shape, generator=torch.Generator().manual_seed(0))).to(torch.uint8)


def _state(path: Path) -> dict[str, bytes]:
    state, _ = load_checkpoint(path)
    return {name: value.numpy().tobytes() for name, value in state.items()}


def test_a_killed_training_goes_on_to_the_same_bytes(halves: torch.Tensor, tmp_path: Path) -> None:
    class KilledError(Exception):
        pass

    def killed(step: int) -> None:
        if step == 8:
            raise KilledError

    calm = train_gan(halves, RECIPE, 3, tmp_path / "calm.safetensors")
    with pytest.raises(KilledError):
        train_gan(halves, RECIPE, 3, tmp_path / "killed.safetensors", on_step=killed)
    assert load_gan(tmp_path / "killed.safetensors", (1, 8, 8), RECIPE).step == 5
    steps: list[int] = []
    train_gan(halves, RECIPE, 3, tmp_path / "killed.safetensors", on_step=steps.append)
    assert steps == list(range(6, 13))
    assert _state(tmp_path / "killed.safetensors") == _state(tmp_path / "calm.safetensors")
    assert calm.grid_steps == (6, 12)
    assert calm.grids.shape == (2, 32, 1, 8, 8)
    assert (calm.history > 0).all()


def test_another_key_or_a_damaged_file_begins_anew(halves: torch.Tensor, tmp_path: Path) -> None:
    path = tmp_path / "gan.safetensors"
    train_gan(halves, RECIPE, 3, path, "one")
    steps: list[int] = []
    train_gan(halves, RECIPE, 3, path, "two", on_step=steps.append)
    assert len(steps) == 12
    with pytest.raises(StoreError, match="another generator"):
        load_gan(path, (1, 8, 8), RECIPE, "one")
    path.write_bytes(path.read_bytes()[:-9])
    steps.clear()
    train_gan(halves, RECIPE, 3, path, "two", on_step=steps.append)
    assert len(steps) == 12


def test_it_learns_what_the_records_look_like(halves: torch.Tensor, tmp_path: Path) -> None:
    recipe = GanRecipe(steps=150, batch_size=32, learning_rate=1e-3, latent=8, width=8, grids=1)
    gan = train_gan(halves, recipe, 0, tmp_path / "gan.safetensors")
    images = sample_images(gan.generator, 40, 1).float()
    assert images[..., 4:].mean() > images[..., :4].mean() + 60
    assert torch.equal(images[:10], sample_images(gan.generator, 10, 1).float())


def test_doors(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="steps: 0"):
        GanRecipe(steps=0)
    with pytest.raises(InputError, match="batch_size: 1"):
        GanRecipe(batch_size=1)
    with pytest.raises(InputError, match="a DCGAN on 1 records"):
        train_gan(torch.zeros(1, 1, 8, 8, dtype=torch.uint8), RECIPE, 0, tmp_path / "x")
