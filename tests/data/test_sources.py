"""One argument names a data set, a file, a folder or a function."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits

from fastmem.data import DATASET_NAMES, Dataset, load_dataset
from fastmem.errors import InputError, UnknownNameError


def test_digits_are_the_bundled_ones_stretched_to_a_byte() -> None:
    data = load_dataset("digits")
    bunch = load_digits()
    assert (len(data), data.input_shape, data.num_classes) == (1797, (1, 8, 8), 10)
    assert data.x.dtype == torch.uint8
    np.testing.assert_allclose(data.x[:, 0].numpy() / 255 * 16, bunch.images, atol=0.04)
    assert len(np.unique(data.x)) == 17
    np.testing.assert_array_equal(data.y, bunch.target)


def test_an_unknown_name_offers_the_nearest() -> None:
    with pytest.raises(UnknownNameError, match="unknown name 'fashion_mnist'; did you mean 'fashion-mnist'") as caught:
        load_dataset("fashion_mnist")
    assert set(caught.value.valid) == set(DATASET_NAMES)


def test_the_root_comes_from_the_argument_or_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FASTMEM_DATA", raising=False)
    with pytest.raises(InputError, match="data_root: not given, and mnist is not bundled; give --data-root DIR"):
        load_dataset("mnist")
    with pytest.raises(InputError, match=f"no t10k-images.*{tmp_path.name}/MNIST/raw"):
        load_dataset("mnist", str(tmp_path))
    monkeypatch.setenv("FASTMEM_DATA", str(tmp_path))
    with pytest.raises(InputError, match=f"{tmp_path.name}/MNIST/raw"):
        load_dataset("mnist")
    monkeypatch.setenv("FASTMEM_DATA", str(tmp_path / "none"))
    with pytest.raises(InputError, match="FASTMEM_DATA: no folder"):
        load_dataset("mnist")


def test_the_argument_wins_over_the_environment(shared_data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FASTMEM_DATA", "/nowhere")
    assert len(load_dataset("mnist", str(shared_data))) == 60_000


def test_files_and_folders(tmp_path: Path) -> None:
    np.savez(tmp_path / "d.npz", x=np.zeros((4, 3)), y=[0, 1, 0, 1])
    assert load_dataset(str(tmp_path / "d.npz")).input_shape == (3,)
    for name in ("a", "b"):
        (tmp_path / "pictures" / name).mkdir(parents=True)
        Image.new("RGB", (3, 2)).save(tmp_path / "pictures" / name / "0.png")
    assert load_dataset(str(tmp_path / "pictures")).input_shape == (3, 2, 3)
    assert load_dataset(str(tmp_path / "pictures"), resize=4).input_shape == (3, 4, 4)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("none.npz", "no file 'none.npz'"),
        ("some/where", "no file or folder 'some/where'"),
        ("table.csv", "no file or folder 'table.csv'"),
    ],
)
def test_a_path_that_leads_nowhere(source: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        load_dataset(source)


def test_a_file_of_another_kind(tmp_path: Path) -> None:
    (tmp_path / "table.csv").write_text("1,2")
    with pytest.raises(InputError, match=r"cannot read files like 'table\.csv'; give an \.npz file"):
        load_dataset(str(tmp_path / "table.csv"))


def test_resize_is_for_folders() -> None:
    with pytest.raises(InputError, match="resize: 32 with data 'digits'"):
        load_dataset("digits", resize=32)


MODULE = """
import torch
from fastmem.data import Dataset, from_arrays

def pair():
    return torch.zeros(4, 2), torch.tensor([0, 1, 0, 1])

def whole():
    return Dataset("mine", torch.zeros(4, 2), torch.tensor([0, 1, 0, 1]), 2)

def wrong():
    return {"x": 1}

def fails():
    raise RuntimeError("two\\nlines")

def bad_values():
    return torch.full((4, 2), float("nan")), torch.tensor([0, 1, 0, 1])

number = 3
"""


@pytest.fixture
def my_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of a module that lies in the working folder alone."""
    (tmp_path / "my_own_data.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry != ""])
    monkeypatch.delitem(sys.modules, "my_own_data", raising=False)
    return "my_own_data"


def test_a_function_of_the_users_own(my_data: str) -> None:
    assert load_dataset(f"{my_data}:pair").name == "my_own_data:pair"
    data = load_dataset(f"{my_data}:whole")
    assert isinstance(data, Dataset)
    assert data.name == "mine"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("wrong", "returned a dict"),
        ("fails", r"failed with RuntimeError: two lines"),
        ("number", "is a int"),
        ("absent", "has no 'absent'"),
        ("bad_values", "4 of 4 records"),
    ],
)
def test_a_function_that_does_not_do(my_data: str, name: str, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        load_dataset(f"{my_data}:{name}")
    assert "\n" not in str(caught.value)


def test_a_module_that_does_not_import() -> None:
    with pytest.raises(InputError, match="cannot import module 'no_such_module'"):
        load_dataset("no_such_module:load")
