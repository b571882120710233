"""Reading stored signals: nothing is believed that its checksum does not confirm."""

from __future__ import annotations

import math
from os import PathLike

import numpy as np
import zarr

from fastmem.errors import StoreError
from fastmem.signals.layout import ATTRIBUTE, FRESH, GROUPS, Layout, as_url, digest, name_of, open_store, store_errors

__all__ = ["StoredRows", "StoredTable", "open_signals", "stored_groups"]

_BLOCK_BYTES = 64 << 20
_AGAIN = "run the audit again: it makes missing and damaged rows anew"


class StoredTable:
    """One table in a store; rows are read and verified one at a time.

    Args:
        url: Where the store is.
        group: Which of its tables.
        node: The open zarr group.

    Raises:
        StoreError: if the group holds no finished table, or one of another format.
    """

    def __init__(self, url: str, group: str, node: zarr.Group) -> None:
        self.url = url
        self.group = group
        self.name = name_of(url, group)
        with store_errors(self.name):
            if not is_table(node):
                raise StoreError(self.name, "holds no signals, or was cut off while being made", FRESH)
            commits = self._array(node, "commits")
            self.layout = Layout.from_attribute(commits.attrs[ATTRIBUTE], self.name)
            self.arrays = {name: self._array(node, name) for name in self.layout.arrays}
            self.commits = commits
            self._node = node

    def _array(self, node: zarr.Group, name: str) -> zarr.Array:
        array = node.get(name)
        if not isinstance(array, zarr.Array):
            raise StoreError(self.name, f"array {name!r} is missing", FRESH)
        return array

    def labels(self) -> np.ndarray:
        """Labels [N], int64, verified."""
        return self._sealed("labels", self.layout.labels_sha256)

    def keep(self) -> np.ndarray:
        """The membership mask [M, N], bool, verified."""
        return self._sealed("keep", self.layout.keep_sha256)

    def _sealed(self, name: str, seal: str) -> np.ndarray:
        with store_errors(self.name):
            values = np.asarray(self._array(self._node, name)[...])
        if digest(values).hex() != seal:
            raise StoreError(self.name, f"{name!r} does not match its checksum", FRESH)
        return values

    def read(self, name: str, models: np.ndarray) -> np.ndarray:
        """Rows of one array, [len(models), N, A(, k)], all at once.

        Raises:
            StoreError: if a row was never finished, or does not match its checksum; the row is named.
        """
        where = f"{self.name} row {models[0]}"
        try:
            with store_errors(where, remedy=_AGAIN):
                commits = np.asarray(self.commits.oindex[models])
                values = np.asarray(self.arrays[name].oindex[models])
        except StoreError:
            if len(models) > 1:  # of many rows one is at fault: find it
                for model in models:
                    self.read(name, np.array([model]))
            raise
        for model, row, commit in zip(models, values, commits, strict=True):
            where = f"{self.name} row {model}"
            if not commit.any():
                raise StoreError(where, "was never finished", _AGAIN)
            if digest(row) != commit[1 + self.layout.arrays.index(name)].tobytes():
                raise StoreError(where, f"{name!r} does not match its checksum: truncated or changed", _AGAIN)
        return values

    def is_complete(self, model: int, key: bytes) -> bool:
        """Whether the row was committed under ``key`` and every array of it matches its checksum."""
        rows = np.array([model])
        try:
            with store_errors(self.name):
                if np.asarray(self.commits[model])[0].tobytes() != key:
                    return False
            for name in self.layout.arrays:
                self.read(name, rows)
        except StoreError:
            return False
        return True


class StoredRows:
    """:class:`fastmem.signals.rows.Rows` of one array of a stored table.

    Args:
        table: The table.
        name: The array.
        models: The models to show, int [M']; None for all.
        samples: The samples to show, int [N']; None for all.
    """

    def __init__(
        self, table: StoredTable, name: str, models: np.ndarray | None = None, samples: np.ndarray | None = None
    ) -> None:
        self.table = table
        self._name = name
        self._models = np.arange(table.layout.num_models) if models is None else models
        self._samples = samples

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape [M', N', ...]."""
        num_samples, *rest = self.table.layout.row_shape(self._name)
        return (len(self._models), num_samples if self._samples is None else len(self._samples), *rest)

    @property
    def dtype(self) -> np.dtype:
        """The stored dtype."""
        return self.table.layout.dtype(self._name)

    def row(self, model: int) -> np.ndarray:
        """What one model said, read and verified."""
        return self._read(self._models[model : model + 1])[0]

    def read(self) -> np.ndarray:
        """All rows, each verified."""
        out = np.empty(self.shape, self.dtype)
        row_bytes = self.dtype.itemsize * math.prod(self.table.layout.row_shape(self._name))
        step = max(1, _BLOCK_BYTES // row_bytes)  # files are read at once, yet never twice the result is held
        for start in range(0, len(out), step):
            out[start : start + step] = self._read(self._models[start : start + step])
        return out

    def _read(self, models: np.ndarray) -> np.ndarray:
        values = self.table.read(self._name, models)
        return values if self._samples is None else values[:, self._samples]

    def select(self, models: np.ndarray | None, samples: np.ndarray | None) -> StoredRows:
        """The same for some models and samples; nothing is read."""
        chosen = self._samples
        if samples is not None:
            chosen = samples if chosen is None else chosen[samples]
        return StoredRows(self.table, self._name, self._models if models is None else self._models[models], chosen)


def is_table(node: zarr.Group) -> bool:
    """Whether a group holds a table that was made to the end."""
    commits = node.get("commits")
    return isinstance(commits, zarr.Array) and ATTRIBUTE in commits.attrs


def open_table(path: str | PathLike[str], group: str) -> StoredTable:
    """Open one table of a store for reading.

    Raises:
        StoreError: if there is none.
    """
    url = as_url(path)
    name = name_of(url, group)
    with store_errors(name):
        try:
            node = zarr.open_group(open_store(url, read_only=True), path=group, mode="r", zarr_format=3)
        except FileNotFoundError:
            raise StoreError(name, "there are no signals", "check the path, or run an audit that writes them") from None
        return StoredTable(url, group, node)


def open_signals(
    path: str | PathLike[str], group: str
) -> tuple[np.ndarray, np.ndarray, StoredRows | None, dict[str, StoredRows]]:
    """The parts of a stored table: labels, mask, logits or None, statistics by name; the last two unread."""
    table = open_table(path, group)
    rows = {name: StoredRows(table, name) for name in table.layout.arrays}
    logits = rows.pop("logits", None)
    return table.labels(), table.keep(), logits, rows


def stored_groups(path: str | PathLike[str]) -> tuple[str, ...]:
    """Which tables a store holds, of ``""`` (the pool), ``"population"``, ``"null"`` and ``"null/population"``.

    Raises:
        StoreError: if there is no store.
    """
    url = as_url(path)
    with store_errors(url):
        try:
            root = zarr.open_group(open_store(url, read_only=True), mode="r", zarr_format=3)
        except FileNotFoundError:
            raise StoreError(url, "there are no signals", "check the path, or run an audit that writes them") from None
        nodes = {group: root.get(group) if group else root for group in GROUPS}
        return tuple(group for group, node in nodes.items() if isinstance(node, zarr.Group) and is_table(node))
