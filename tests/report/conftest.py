"""A stored run to draw, and a reader of pages that checks what every page must be."""

from __future__ import annotations

import importlib.util
import json
import re
import shutil
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

_HERE = Path(__file__).parent
_VOID = {"meta", "img", "br", "line", "link", "input", "hr"}


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    """A private copy of the stored run of schema 1."""
    return Path(shutil.copytree(_HERE / "fixtures" / "audit_schema_1", tmp_path / "run"))


@pytest.fixture
def edit(run_dir: Path) -> Callable[[Callable[[dict[str, Any]], None]], Path]:
    """Change the copy's summary by a function and get its folder."""

    def apply(change: Callable[[dict[str, Any]], None]) -> Path:
        file = run_dir / "summary.json"
        summary = json.loads(file.read_text(encoding="utf-8"))
        change(summary)
        file.write_text(json.dumps(summary), encoding="utf-8")
        return run_dir

    return apply


@pytest.fixture
def write_run() -> Callable[..., Path]:
    """Make a run of any size (``synthetic.write_run``)."""
    spec = importlib.util.spec_from_file_location("report_synthetic", _HERE / "synthetic.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.write_run


class Document(HTMLParser):
    """A page read strictly: tags must nest, ids must be unique.

    Attributes:
        elements: (tag, attributes) in order.
        text: All text, tags removed.
    """

    def __init__(self, source: str) -> None:
        super().__init__(convert_charrefs=True)
        self.source = source
        self.elements: list[tuple[str, dict[str, str]]] = []
        self._open: list[str] = []
        self._text: list[str] = []
        self.feed(source)
        self.close()
        assert not self._open, f"not closed: {self._open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {name: value or "" for name, value in attrs}))
        if tag not in _VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {name: value or "" for name, value in attrs}))

    def handle_endtag(self, tag: str) -> None:
        assert self._open, f"</{tag}> closes nothing"
        assert self._open[-1] == tag, f"</{tag}> closes <{self._open[-1]}>"
        self._open.pop()

    def handle_data(self, data: str) -> None:
        if "style" not in self._open:
            self._text.append(data)

    @property
    def text(self) -> str:
        return re.sub(r"\s+", " ", " ".join(self._text))

    def tags(self, name: str) -> list[dict[str, str]]:
        return [attributes for tag, attributes in self.elements if tag == name]

    def section(self, anchor: str) -> str:
        """The source of one section."""
        found = re.search(rf'<section id="{anchor}".*?</section>', self.source, flags=re.DOTALL)
        assert found is not None, f"no section {anchor}"
        return found[0]

    def check(self) -> None:
        """What every page must be: nothing from outside, no scripts, ids unique, links that lead somewhere."""
        outside = re.search(r"https?:|//[a-z]|@import", re.sub(r"base64,[^\"]*", "", self.source))
        assert not outside, "an address of the network"
        forbidden = {"script", "link", "iframe", "object", "embed", "base", "form"} & {tag for tag, _ in self.elements}
        assert not forbidden
        ids = [attributes["id"] for _, attributes in self.elements if "id" in attributes]
        assert len(ids) == len(set(ids)), "an id twice"
        for tag, attributes in self.elements:
            assert not any(name.startswith("on") for name in attributes), f"a script in <{tag}>"
            if "href" in attributes:
                assert attributes["href"].startswith("#")
                assert attributes["href"][1:] in ids, f"{attributes['href']} leads nowhere"
            if "src" in attributes:
                assert attributes["src"].startswith("data:image/png;base64,")
            for used in re.findall(r"url\(#([^)]+)\)", " ".join(attributes.values())):
                assert used in ids, f"url(#{used}) leads nowhere"
        assert all(image.get("alt") for image in self.tags("img")), "a picture without words"
        plots = [svg for svg in self.tags("svg") if svg.get("class") == "plot"]
        assert all(svg.get("aria-label") and svg.get("role") == "img" for svg in plots), "a figure without words"


@pytest.fixture
def read_page() -> Callable[[Path | str], Document]:
    """Read a page and check what every page must be."""

    def read(page: Path | str) -> Document:
        document = Document(page.read_text(encoding="utf-8") if isinstance(page, Path) else page)
        document.check()
        return document

    return read
