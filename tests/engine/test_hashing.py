"""Keys change with every ingredient, and only with them."""

from __future__ import annotations

import dataclasses
import hashlib
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import fastmem
from fastmem.engine import code_version, content_key, source_fingerprint
from fastmem.errors import InputError


@dataclasses.dataclass(frozen=True)
class _Recipe:
    epochs: int = 3
    rate: float = 0.1


def test_a_key_is_the_hash_of_a_canonical_text() -> None:
    assert content_key(b=1, a=(1.5, "x")) == hashlib.sha256(b'{"a":[1.5,"x"],"b":1}').hexdigest()


@given(st.dictionaries(st.text(max_size=3), st.integers() | st.floats(allow_nan=False) | st.text(max_size=3)))
def test_order_does_not_matter_but_any_change_does(ingredients: dict[str, object]) -> None:
    key = content_key(**ingredients)
    assert key == content_key(**dict(reversed(ingredients.items())))
    assert key != content_key(**ingredients, one_more=None)


def test_arrays_enter_by_bytes_dtype_and_shape() -> None:
    base = np.arange(6, dtype=np.int32).reshape(2, 3)
    others = [base[::-1], base.T, base.astype(np.int64), base.reshape(3, 2), base + 1, base.view(np.float32)]
    keys = {content_key(x=array) for array in (base, *others)}
    assert len(keys) == 1 + len(others)
    assert content_key(x=base) == content_key(x=np.asfortranarray(base)), "memory layout is not content"


def test_dataclasses_enter_by_their_fields() -> None:
    assert content_key(r=_Recipe()) == content_key(r=_Recipe(epochs=3))
    assert content_key(r=_Recipe()) != content_key(r=_Recipe(rate=0.2))


def test_what_has_no_canonical_form_is_refused() -> None:
    with pytest.raises(TypeError, match="set"):
        content_key(x={1, 2})


def test_code_version_follows_every_source_byte(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code_version.cache_clear()
    here = code_version("engine")
    copy = tmp_path / "fastmem"
    shutil.copytree(Path(fastmem.__file__).parent / "engine", copy / "engine")
    monkeypatch.setattr(fastmem, "__file__", str(copy / "__init__.py"))

    def version() -> str:
        code_version.cache_clear()
        return code_version("engine")

    assert version() == here
    with (copy / "engine" / "plan.py").open("a") as source:
        source.write("#")
    assert version() != here
    code_version.cache_clear()


@pytest.fixture
def user_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "user_layers.py").write_text("class Block:\n    pass\n")
    (tmp_path / "user_net.py").write_text("from user_layers import Block\nimport json\nclass Net(Block):\n    pass\n")
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path
    for name in ("user_net", "user_layers"):
        sys.modules.pop(name, None)


def _fresh_fingerprint() -> str:
    for name in ("user_net", "user_layers"):
        sys.modules.pop(name, None)
    return source_fingerprint("model", "user_net:Net")


@pytest.mark.parametrize("edited", ["user_net.py", "user_layers.py"])
def test_a_users_model_is_keyed_by_its_source_and_what_it_imports(user_package: Path, edited: str) -> None:
    before = _fresh_fingerprint()
    assert _fresh_fingerprint() == before
    with (user_package / edited).open("a") as source:
        source.write("# edited\n")
    assert _fresh_fingerprint() != before


def test_a_module_that_is_not_there_is_an_input_error() -> None:
    with pytest.raises(InputError, match=r"^model: .*no_such_module"):
        source_fingerprint("model", "no_such_module:Net")
