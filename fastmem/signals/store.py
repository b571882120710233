"""Writing signals so that nothing is lost: a row exists only once its commit record says so.

The payload of a row goes first, a chunk per array; its commit record, the SHA-256 of its key and of each array's bytes,
goes last. Each of them replaces its file (or object) in one step. So a kill at any instant, a full disk or a truncated
file costs the row that was being written and no other; the next run finds it missing and writes it again.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from itertools import accumulate
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from zarr.abc.store import Store
from zarr.errors import ContainsGroupError

from fastmem.errors import InputError, StoreError
from fastmem.metrics.arrays import as_float64, as_labels, as_numpy, locate
from fastmem.signals.checks import check_keep
from fastmem.signals.layout import FRESH, Layout, as_url, digest, name_of, open_store, store_errors
from fastmem.signals.names import canonical_name
from fastmem.signals.rows import Rows
from fastmem.signals.stored import StoredRows, StoredTable, is_table

__all__ = ["SignalsWriter", "save_signals"]


class SignalsWriter:
    """One table of a store, open for writing rows; made if it is not there.

    Different processes may write different rows of one table at the same time.

    Args:
        path: A folder or any fsspec URL (``s3://bucket/run/signals.zarr``).
        labels: Class of each sample, integers [N].
        keep: The membership mask, bool [M, N]; row m belongs to model m.
        stats: What each row holds: statistics by name, and ``"logits"`` where they are kept.
        num_queries: A.
        num_classes: C; needed with ``"logits"`` only.
        logits_dtype: The dtype in which logits are kept.
        group: Which table of the store: ``""`` for the pool, or for example ``"population"``, ``"null/population"``.
        fresh: Start over: whatever this group (and those beneath it) holds is deleted.

    Raises:
        InputError: for bad labels, masks or names.
        StoreError: if the place cannot be written, holds something else, or holds a table of other labels, mask or
            statistics.
    """

    def __init__(
        self,
        path: str | PathLike[str],
        labels: Any,
        keep: Any,
        stats: Iterable[str],
        *,
        num_queries: int = 1,
        num_classes: int | None = None,
        logits_dtype: str = "float32",
        group: str = "",
        fresh: bool = False,
    ) -> None:
        labels = as_labels("labels", labels)
        keep = check_keep(keep, len(labels))
        names = tuple(dict.fromkeys(name if name == "logits" else canonical_name(name) for name in stats))
        if not names:
            raise InputError("stats", "none given", "name at least one statistic, for example 'margin'")
        if num_queries < 1:
            raise InputError("num_queries", f"{num_queries}", "give at least 1: query 0 is the clean sample")
        with_logits = "logits" in names
        if with_logits and (num_classes is None or num_classes < 2):
            raise InputError("num_classes", f"{num_classes}", "logits are kept for at least 2 classes")
        layout = Layout(
            num_models=keep.shape[0],
            num_samples=keep.shape[1],
            num_queries=num_queries,
            arrays=names,
            num_classes=num_classes if with_logits else None,
            logits_dtype=np.dtype(logits_dtype).name if with_logits else None,
            labels_sha256=digest(labels).hex(),
            keep_sha256=digest(keep).hex(),
        )
        self._table = _make_table(as_url(path), group, layout, labels, keep, fresh)

    @property
    def num_models(self) -> int:
        """M, the number of rows."""
        return self._table.layout.num_models

    @property
    def stats(self) -> tuple[str, ...]:
        """What each row holds, canonical names."""
        return self._table.layout.arrays

    def write_row(self, model: int, values: Mapping[str, Any], key: str) -> None:
        """Write one model's row; it exists once this returns, and not at all if it does not.

        Args:
            model: The row, 0..M-1.
            values: For each name of ``stats`` an array [N, A(, k)].
            key: 64 hexadecimal digits: the SHA-256 of everything that decides the row's content.

        Raises:
            InputError: for a row out of range, missing or surplus names, wrong shapes, NaN or infinite values.
            StoreError: if the disk is full or the place cannot be written.
        """
        layout = self._table.layout
        if not 0 <= model < layout.num_models:
            raise InputError("model", f"{model}", f"give 0..{layout.num_models - 1}")
        digests = [_key_bytes(key)]
        payload = self._checked(values)
        with store_errors(f"{self._table.name} row {model}"):
            for name, array in payload.items():
                digests.append(digest(array))
                self._table.arrays[name][model] = array
            record = np.frombuffer(b"".join(digests), np.uint8).reshape(len(digests), -1)
            self._table.commits[model] = record

    def completed(self, keys: Sequence[str]) -> np.ndarray:
        """Which rows are there: committed under the expected key, with every checksum right.

        Args:
            keys: The key of each row, M of them.

        Returns:
            bool [M].

        Raises:
            InputError: if there are not M keys of 64 hexadecimal digits.
        """
        if len(keys) != self.num_models:
            raise InputError("keys", f"{len(keys)} keys for {self.num_models} rows", "give one per row")
        return np.array([self.is_complete(model, key) for model, key in enumerate(keys)])

    def is_complete(self, model: int, key: str) -> bool:
        """Whether one row is there: committed under this key, with every checksum right.

        Raises:
            InputError: if the key is not 64 hexadecimal digits.
        """
        return self._table.is_complete(model, _key_bytes(key))

    def _checked(self, values: Mapping[str, Any]) -> dict[str, np.ndarray]:
        layout = self._table.layout
        given = {name if name == "logits" else canonical_name(name): value for name, value in values.items()}
        if set(given) != set(layout.arrays):
            raise InputError("values", f"holds {sorted(given)}", f"give exactly {sorted(layout.arrays)}")
        checked = {}
        for name in layout.arrays:
            argument, axes = f"values[{name!r}]", ("sample", "query", "entry")
            array = as_numpy(argument, given[name])
            if array.shape != layout.row_shape(name):
                raise InputError(argument, f"shape {array.shape}", f"give {layout.row_shape(name)}")
            if name == "logits":
                with np.errstate(over="ignore"):  # an overflow is the error that follows
                    array = array.astype(layout.dtype(name), copy=False)
                if not (finite := np.isfinite(array)).all():
                    raise InputError(argument, locate(array, ~finite, axes), f"keep logits in more than {array.dtype}")
            else:
                array = as_float64(argument, array, axes=axes)
            checked[name] = array
        return checked


def save_signals(
    path: str | PathLike[str],
    group: str,
    overwrite: bool,
    labels: np.ndarray,
    keep: np.ndarray,
    logits: Rows | None,
    stats: Mapping[str, Rows],
) -> None:
    """Write a whole table (:meth:`fastmem.signals.Signals.save`), a row at a time."""
    url = as_url(path)
    rows = {**stats, **({"logits": logits} if logits is not None else {})}
    name = name_of(url, group)
    if not overwrite and _holds_table(url, group):
        raise StoreError(name, "already holds signals", "choose another path or pass overwrite=True")
    for part in rows.values():  # overwriting deletes first, and these rows are yet to be read
        if isinstance(part, StoredRows) and part.table.url == url and part.table.group.startswith(group):
            raise InputError("path", f"{name} is where these signals are read from", "choose another path")
    shape = next(iter(rows.values())).shape
    writer = SignalsWriter(
        path,
        labels,
        keep,
        rows,
        num_queries=shape[2],
        num_classes=logits.shape[3] if logits is not None else None,
        logits_dtype=logits.dtype.name if logits is not None else "float32",
        group=group,
        fresh=overwrite,
    )
    for model in range(shape[0]):
        values = {name: part.row(model) for name, part in rows.items()}
        key = digest(np.frombuffer(b"".join(digest(values[name]) for name in writer.stats), np.uint8))
        writer.write_row(model, values, key.hex())


def _make_table(url: str, group: str, layout: Layout, labels: np.ndarray, keep: np.ndarray, fresh: bool) -> StoredTable:
    """The table as ``layout`` says: opened where it is, made where it is not, refused where something else is."""
    name = name_of(url, group)
    with store_errors(name):
        _refuse_foreign_folder(url)
        store = open_store(url, read_only=False)
        if fresh:
            zarr.create_group(store, path=group, overwrite=True, zarr_format=3)
        node = _group(store, "")
        for path in accumulate(group.split("/") if group else [], "{}/{}".format):
            node = _group(store, path)
        if not is_table(node):
            layout.create(name, node, labels, keep)
        table = StoredTable(url, group, node)
    differing = [field for field in vars(layout) if getattr(table.layout, field) != getattr(layout, field)]
    if differing:
        raise StoreError(name, f"holds signals of another run ({', '.join(differing)} differ)", FRESH)
    table.labels()  # a store that readers would refuse gets no further rows
    table.keep()
    return table


def _group(store: Store, path: str) -> zarr.Group:
    """A group, made if it is not there; of several processes that try one makes it and all have it."""
    with suppress(ContainsGroupError):
        return zarr.create_group(store, path=path, zarr_format=3)
    return zarr.open_group(store, path=path, mode="r+", zarr_format=3)


def _refuse_foreign_folder(url: str) -> None:
    folder = Path(url)
    if "://" in url or not folder.is_dir():
        return
    # Looked at before zarr.json: where another process is just making the store, that is its first file.
    strangers = [entry for entry in folder.iterdir() if not entry.name.endswith(".partial")]
    if strangers and not (folder / "zarr.json").exists():
        raise StoreError(url, "a folder with other files in it", "choose an empty or new folder")


def _holds_table(url: str, group: str) -> bool:
    with store_errors(name_of(url, group)):
        try:
            node = zarr.open_group(open_store(url, read_only=True), path=group, mode="r", zarr_format=3)
        except FileNotFoundError:
            return False
        return is_table(node)


def _key_bytes(key: str) -> bytes:
    try:
        value = bytes.fromhex(key)
    except (ValueError, TypeError):
        value = b""
    if len(value) != 32:
        raise InputError("key", f"{key!r}", "give 64 hexadecimal digits (SHA-256)")
    return value
