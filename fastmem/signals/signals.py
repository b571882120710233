"""Signals: what M models said about N samples, and who was in whose training set.

The one table that every membership attack reads. Query 0 is the clean sample; higher margin = more likely a member.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from fastmem.errors import InputError
from fastmem.metrics.arrays import as_labels
from fastmem.signals.checks import check_indices, check_keep, check_logits, check_stats
from fastmem.signals.names import canonical_name, margin_source, parse_name, trailing_shape
from fastmem.signals.rows import MemoryRows, Rows

if TYPE_CHECKING:
    from typing import Self

__all__ = ["Signals"]


class Signals:
    """The answers of M models about N labelled samples under A queries, with the membership mask.

    Numpy arrays and torch tensors (any device) are accepted; nothing is copied that need not be. Bad input is refused
    here, so that attacks can trust what they read.

    Args:
        labels: Class of each sample, integers [N].
        keep: ``keep[m, n]`` is True where sample n was in model m's training set, bool [M, N].
        logits: Network outputs before softmax, floating [M, N, A, C], or None.
        stats: Statistics by name (see :mod:`fastmem.signals.names`), [M, N, A], ``top3`` [M, N, A, 3].

    Raises:
        InputError: for shapes that disagree, a mask that is not boolean, labels out of range, NaN or infinite values
            (counted and located), or neither logits nor statistics.

    Example:
        >>> import numpy as np
        >>> signals = Signals(labels=[0, 1], keep=np.array([[True, False]]), stats={"margin": [[[2.0], [-1.0]]]})
        >>> signals.stat("loss").round(3)
        array([[[0.127],
                [1.313]]])
    """

    def __init__(self, labels: Any, keep: Any, logits: Any = None, stats: Mapping[str, Any] | None = None) -> None:
        if logits is None and not stats:
            raise InputError(
                "stats", "neither logits nor statistics are given", "give logits=, or stats={'margin': ...}"
            )
        checked_labels = as_labels("labels", labels)
        checked_keep = check_keep(keep, len(checked_labels))
        num_queries = None
        checked_logits = None
        if logits is not None:
            checked_logits = check_logits(logits, checked_keep)
            num_queries, num_classes = checked_logits.shape[2:]
            as_labels("labels", checked_labels, num_classes)
        checked_stats = check_stats(stats or {}, checked_keep, num_queries)
        self._set(
            checked_labels,
            checked_keep,
            None if checked_logits is None else MemoryRows(checked_logits),
            {name: MemoryRows(array) for name, array in checked_stats.items()},
        )

    def _set(
        self,
        labels: np.ndarray,
        keep: np.ndarray,
        logits: Rows | None,
        stats: dict[str, Rows],
        margins: dict[str, np.ndarray] | None = None,
    ) -> None:
        self._labels = labels
        self._keep = keep
        self._logits = logits
        self._stats = stats
        # Nearly every attack reads the margin, so a margin is kept once read or derived; the rest is had anew each time.
        self._margins = {} if margins is None else margins

    @classmethod
    def _of(cls, *parts: Any) -> Self:
        """A table of parts that are known to be good."""
        self = cls.__new__(cls)
        self._set(*parts)
        return self

    # -- what is in it ------------------------------------------------------------------------------------------------

    @property
    def labels(self) -> np.ndarray:
        """Class of each sample, int64 [N]."""
        return self._labels

    @property
    def keep(self) -> np.ndarray:
        """The membership mask, bool [M, N]."""
        return self._keep

    @property
    def logits(self) -> np.ndarray | None:
        """Logits [M, N, A, C] in the dtype they came in, read in full; None where only statistics are known."""
        return None if self._logits is None else self._logits.read()

    @property
    def num_models(self) -> int:
        """M, the number of models."""
        return self._keep.shape[0]

    @property
    def num_samples(self) -> int:
        """N, the number of samples."""
        return self._keep.shape[1]

    @property
    def num_queries(self) -> int:
        """A, the number of queries per sample; query 0 is the clean sample."""
        rows = self._logits if self._logits is not None else next(iter(self._stats.values()))
        return rows.shape[2]

    @property
    def stored(self) -> tuple[str, ...]:
        """The statistics that are stored rather than derived."""
        return tuple(self._stats)

    def has(self, name: str) -> bool:
        """Whether :meth:`stat` can give ``name``: it is stored, or follows from the margin or the logits."""
        name = canonical_name(name)
        return name in self._stats or margin_source(name) in self._stats or self._logits is not None

    def stat(self, name: str) -> np.ndarray:
        """One statistic of every answer: as stored, else from the margin, else from the logits.

        Only what is asked for is read. From logits it is computed by :mod:`fastmem.ops` in float64, a block of rows at
        a time.

        Args:
            name: A statistic, for example ``"margin"``, ``"entropy"`` or ``"margin@2"`` (temperature 2).

        Returns:
            float64 [M, N, A]; [M, N, A, 3] for ``"top3"``. Not to be written to: it may be shared.

        Raises:
            UnknownNameError: if there is no such statistic.
            InputError: if it is neither stored nor can be derived from what is.
            StoreError: if it is read from a store and a row of it is missing or damaged.
        """
        name = canonical_name(name)
        if name in self._margins:
            return self._margins[name]
        if name in self._stats:
            values = self._stats[name].read()
        elif (margin := margin_source(name)) not in (None, name) and self.has(margin):
            return _from_margin(name, self.stat(margin))
        elif self._logits is not None:
            values = self._derive(name, self._logits)
        else:
            raise InputError(
                "stat",
                f"{name!r} is not stored and does not follow from {', '.join(self._stats)}",
                f"give logits=, or store it: stats={{{name!r}: ...}}",
            )
        if name == margin_source(name):
            self._margins[name] = values
        return values

    def _derive(self, name: str, logits: Rows) -> np.ndarray:
        from fastmem.signals.statistics import from_logits  # what is stored needs no torch

        out = np.empty((*logits.shape[:3], *trailing_shape(name)))
        for model in range(self.num_models):
            out[model] = from_logits(name, logits.row(model), self._labels)
        return out

    # -- parts of it --------------------------------------------------------------------------------------------------

    def select_models(self, indices: Any) -> Signals:
        """The same samples seen by some of the models.

        Args:
            indices: Integers in 0..M-1, a boolean mask [M] or a slice.

        Returns:
            A table that shares what it can with this one; rows in a store are still read only when asked for.

        Raises:
            InputError: for an index out of range or an empty choice.
        """
        return self._select(check_indices("indices", indices, self.num_models), None)

    def rows(self, indices: Any) -> Signals:
        """Some of the samples (the rows of the data set) seen by the same models.

        Args:
            indices: Integers in 0..N-1, a boolean mask [N] or a slice.

        Returns:
            A table that shares what it can with this one.

        Raises:
            InputError: for an index out of range or an empty choice.
        """
        return self._select(None, check_indices("indices", indices, self.num_samples))

    def with_keep(self, keep: Any) -> Signals:
        """The same answers under another membership mask, as the controls of an audit need.

        Args:
            keep: bool [M, N].

        Returns:
            A table that shares all answers with this one.

        Raises:
            InputError: if the mask is not boolean or of another shape.
        """
        mask = check_keep(keep, self.num_samples)
        if mask.shape != self._keep.shape:
            raise InputError("keep", f"shape {mask.shape}", f"give {self._keep.shape}, a row per model")
        return self._of(self._labels, mask, self._logits, self._stats, self._margins)

    def _select(self, models: np.ndarray | None, samples: np.ndarray | None) -> Signals:
        def part(array: np.ndarray) -> np.ndarray:
            return MemoryRows(array).select(models, samples).read()

        return self._of(
            self._labels if samples is None else self._labels[samples],
            part(self._keep),
            None if self._logits is None else self._logits.select(models, samples),
            {name: rows.select(models, samples) for name, rows in self._stats.items()},
            {name: part(margin) for name, margin in self._margins.items()},
        )

    # -- on disk ------------------------------------------------------------------------------------------------------

    def save(self, path: Any, group: str = "", overwrite: bool = False) -> None:
        """Write the table as a zarr store, a row at a time; derived statistics are not written.

        Args:
            path: A folder or any fsspec URL (``s3://bucket/run/signals.zarr``).
            group: Where in the store: ``""``, or a name such as ``"population"``.
            overwrite: Replace a table that is already there.

        Raises:
            StoreError: if the place cannot be written, or already holds a table and ``overwrite`` is False.
        """
        from fastmem.signals.store import save_signals  # zarr takes a third of a second to import

        save_signals(path, group, overwrite, self._labels, self._keep, self._logits, self._stats)

    @classmethod
    def open(cls, path: Any, group: str | None = None) -> Self:
        """Open a stored table; statistics are read, and their checksums verified, when they are asked for.

        Args:
            path: A folder or any fsspec URL.
            group: The part of the store to open; None or ``""`` for the pool.

        Returns:
            The table.

        Raises:
            StoreError: if there is no table, or its layout is damaged. A damaged or unfinished row raises when read.
        """
        from fastmem.signals.stored import open_signals

        return cls._of(*open_signals(path, group or ""))

    def __repr__(self) -> str:
        kinds = [*self._stats, *(["logits"] if self._logits is not None else [])]
        return (
            f"Signals({self.num_models} models, {self.num_samples} samples, {self.num_queries} queries; "
            f"{', '.join(kinds)})"
        )


def _from_margin(name: str, margin: np.ndarray) -> np.ndarray:
    """``loss`` or ``true_log_prob`` from the margin at the same temperature."""
    loss = np.logaddexp(0.0, -margin)  # softplus(-s), exact in both tails
    return loss if parse_name(name)[0] == "loss" else -loss
