"""The registry: which implementation runs, who may force it, and what explain says about the others."""

from __future__ import annotations

import asyncio
import importlib
import threading
from types import ModuleType
from typing import Any

import pytest
import torch

import fastmem
from fastmem.errors import InputError, UnknownNameError
from fastmem.ops import _registry, explain, operators, use_backend
from fastmem.ops._registry import Backend, register, select


def toy_backend(name: str, priority: Any, unavailable: str | None = None, longest: int = 1000) -> Backend:
    """An operator on lists: each implementation returns its own name, up to a length."""
    return Backend(
        op="toy",
        name=name,
        priority=priority,
        available=lambda: unavailable,
        supports=lambda values: None if len(values) <= longest else f"at most {longest} values",
        forward=lambda values: name,
    )


@pytest.fixture(autouse=True)
def toys(monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty registry but for four toy implementations, and no setting from outside."""
    monkeypatch.delenv("FASTMEM_BACKEND", raising=False)
    monkeypatch.setattr(_registry, "_operators", {})
    register(toy_backend("reference", 0))
    register(toy_backend("cpu", 10))
    register(toy_backend("triton", 20, longest=2))
    register(toy_backend("cuda", 30, unavailable="no such device"))


def chosen(*values: int) -> str:
    return select("toy", values).forward(values)


def test_auto_takes_the_highest_priority_that_fits() -> None:
    assert chosen(1, 2) == "triton"
    assert chosen(1, 2, 3) == "cpu"


def test_a_priority_may_depend_on_the_arguments() -> None:
    register(toy_backend("reference", lambda values: 100 * len(values)))
    assert chosen() == "triton"
    assert chosen(1) == "reference"
    register(toy_backend("triton", lambda values: 1000 if values == (7,) else 5, longest=1))
    assert chosen(7) == "triton"
    assert chosen(7, 7) == "reference"


def test_at_equal_priority_the_more_specific_one_wins() -> None:
    register(toy_backend("reference", 20))
    assert chosen(1) == "triton"


def test_the_same_name_again_replaces() -> None:
    register(toy_backend("cuda", 30))
    assert chosen(1) == "cuda"


def test_availability_is_asked_once() -> None:
    asked = []
    backend = toy_backend("cuda", 30)
    register(Backend(**{**vars(backend), "available": lambda: asked.append(1)}))
    assert [chosen(1), chosen(2), str(explain("toy"))[0]] == ["cuda", "cuda", "t"]
    assert len(asked) == 1


def test_blocks_force_and_nest_and_end() -> None:
    with use_backend("cpu"):
        assert chosen(1) == "cpu"
        with use_backend("reference"):
            assert chosen(1) == "reference"
            with use_backend("auto"):
                assert chosen(1) == "triton"
        assert chosen(1) == "cpu"
    assert chosen(1) == "triton"
    with pytest.raises(KeyError), use_backend("cpu"):
        raise KeyError
    assert chosen(1) == "triton"


def test_a_block_holds_for_its_own_thread_and_task() -> None:
    seen: list[str] = []
    with use_backend("cpu"):
        thread = threading.Thread(target=lambda: seen.append(chosen(1)))
        thread.start()
        thread.join()
    assert seen == ["triton"]

    async def force(name: str) -> str:
        with use_backend(name):
            await asyncio.sleep(0)
            return chosen(1)

    async def both() -> list[str]:
        return await asyncio.gather(force("cpu"), force("reference"))

    assert asyncio.run(both()) == ["cpu", "reference"]


def test_the_environment_sets_what_no_block_does(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FASTMEM_BACKEND", "reference")
    assert chosen(1) == "reference"
    with use_backend("cpu"):
        assert chosen(1) == "cpu"
    monkeypatch.setenv("FASTMEM_BACKEND", "cudo")
    with pytest.raises(UnknownNameError, match=r"FASTMEM_BACKEND: unknown name 'cudo'; did you mean 'cuda'"):
        chosen(1)


def test_an_unknown_backend_is_refused_with_the_names() -> None:
    with pytest.raises(UnknownNameError, match="accepted: auto, cpu, cuda, reference, triton"), use_backend("gpu"):
        pass
    with pytest.raises(UnknownNameError, match="'opencl'"):
        register(toy_backend("opencl", 1))


def test_a_forced_backend_that_cannot_run_says_why() -> None:
    with use_backend("cuda"), pytest.raises(InputError, match=r"'cuda' cannot run toy here \(no such device\)"):
        chosen(1)
    with use_backend("triton"), pytest.raises(InputError, match=r"'triton' .* \(at most 2 values\)"):
        chosen(1, 2, 3)


def test_no_implementation_that_fits() -> None:
    for name in ("reference", "cpu", "triton"):
        register(toy_backend(name, 1, longest=0))
    with pytest.raises(InputError, match="no implementation of toy takes these arguments"):
        chosen(1)
    assert explain("toy", [1]).chosen is None


def test_explain_is_a_line_for_each_backend() -> None:
    assert str(explain("toy", [1, 2, 3])) == "\n".join(
        [
            "toy([1, 2, 3]), backend setting: auto",
            "   reference  available, lower priority",
            "-> cpu        runs",
            "   triton     does not take these arguments: at most 2 values",
            "   cuda       not available: no such device",
        ]
    )
    with use_backend("reference"):
        assert str(explain("toy", [1])) == "\n".join(
            [
                "toy([1]), backend setting: reference",
                "-> reference  runs: forced by the setting",
                "   cpu        available, but another is forced",
                "   triton     available, but another is forced",
                "   cuda       not available: no such device",
            ]
        )


def test_explain_without_arguments_judges_the_machine() -> None:
    explanation = explain("toy")
    assert explanation.chosen == "triton"
    assert explanation.remarks["cuda"] == "not available: no such device"
    register(toy_backend("cpu", lambda values: len(values)))
    assert explain("toy").chosen == "cpu"  # its priority is open, so it may be the one
    with use_backend("cuda"):
        assert explain("toy").chosen is None


def test_an_import_error_becomes_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    def import_module(name: str) -> ModuleType:
        errors = {
            "fastmem.ops.cpu.toy": ImportError("libfoo.so.1: cannot open shared object file"),
            "fastmem.ops.cuda.toy": ModuleNotFoundError("No module named 'foo'", name="foo"),
        }
        raise errors.get(name, ModuleNotFoundError(f"No module named {name!r}", name=name))

    monkeypatch.setattr(_registry, "_operators", {})
    register(toy_backend("reference", 0))
    monkeypatch.setattr(importlib, "import_module", import_module)
    assert chosen(1) == "reference"
    assert explain("toy").remarks == {
        "reference": "runs",
        "cpu": "not available: libfoo.so.1: cannot open shared object file",
        "triton": "not available: this operator has no such implementation",
        "cuda": "not available: No module named 'foo'",
    }


def test_an_unknown_operator_is_refused_with_the_nearest_names() -> None:
    with pytest.raises(UnknownNameError, match=r"op: unknown name 'kl_dvi'; did you mean 'kl_div'\?"):
        explain("kl_dvi")
    with pytest.raises(UnknownNameError, match="logit_margin"):
        select("logits_margin")


class TestShippedOperators:
    """The registry as a user finds it."""

    @pytest.fixture(autouse=True)
    def real(self, toys: None, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.undo()
        monkeypatch.delenv("FASTMEM_BACKEND", raising=False)

    def test_every_one_runs_somewhere(self) -> None:
        assert {"kl_div", "logit_stats"} <= set(operators())
        for op in operators():
            assert explain(op).chosen is not None

    def test_explain_takes_the_arguments_of_the_public_call(self) -> None:
        p, q = torch.zeros(4, 1, 5), torch.zeros(3, 5)
        explanation = fastmem.explain("kl_div", p, q, temperature=2.0)
        assert explanation.arguments == "float32 [4, 1, 5] on cpu, float32 [1, 3, 5] on cpu, 2.0"
        assert explanation.chosen in ("cpu", "reference")

    def test_a_face_is_explained_under_its_own_name(self) -> None:
        z, y = torch.zeros(3, 5), torch.zeros(3, dtype=torch.int64)
        explanation = explain("logit_margin", z, y)
        assert str(explanation).startswith("logit_margin(float32 [3, 5] on cpu, int64 [3] on cpu, True)")
        assert explanation.chosen == explain("logit_stats", z, y).chosen

    def test_explain_refuses_what_the_operator_refuses(self) -> None:
        with pytest.raises(InputError, match="q_logits"):
            explain("kl_div", torch.zeros(3, 5), torch.zeros(3, 4))

    @pytest.mark.parametrize("name", _registry.BACKEND_NAMES)
    def test_every_backend_works_or_has_a_reason(self, name: str) -> None:
        for op in ("kl_div", "logit_stats"):
            remark = explain(op).remarks[name]
            if remark.startswith("not available"):
                assert len(remark.removeprefix("not available: ")) > 3
                pytest.skip(f"{op} on {name}: {remark}")
