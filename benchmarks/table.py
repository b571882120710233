"""From pytest-benchmark's JSON to the committed results: ``results.json`` and ``results.md``.

A run of some cases replaces their rows and leaves the others as they are, so every row says what it was measured on.
"""

from __future__ import annotations

import datetime
import json
import os
import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks import machine

#: From so many cores on that other processes use, a machine is busy.
BUSY = 0.25
_MARKS = ("<!-- benchmarks: begin -->", "<!-- benchmarks: end -->")


def render(raw: Path, folder: Path, *, device: str) -> str:
    """Pool the laps of every contestant, write both files, and return the table as Markdown."""
    measured = {
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "commit": machine.commit(),
        "versions": machine.versions(),
    }
    rows = [row | measured for row in _pool(json.loads(raw.read_text())["benchmarks"])]
    path = folder / "results.json"
    before = json.loads(path.read_text())["rows"] if path.exists() else []
    results = {"machine": machine.device_name(device), "device": device, "rows": _merged(before, rows)}
    path.write_text(json.dumps(results, indent=1) + "\n")
    text = _markdown(results)
    (folder / "results.md").write_text(text)
    return text


def _case(row: dict[str, Any]) -> tuple[Any, ...]:
    return tuple(row[key] for key in ("operator", "shape", "dtype", "threads"))


def _merged(before: list[dict[str, Any]], rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Contestants of a case are compared with each other, so a case that was measured again is replaced whole."""
    again = {_case(row) for row in rows}
    return sorted([row for row in before if _case(row) not in again] + rows, key=_case)


def update_readme(readme: Path, folder: Path) -> None:
    """Replace the table between the two marks of the README by the main rows of the one in ``folder``."""
    head, rest = readme.read_text().split(_MARKS[0], 1)
    _, tail = rest.split(_MARKS[1], 1)
    results = json.loads((folder / "results.json").read_text())
    text = _brief(results, Path(os.path.relpath(folder, readme.parent)).as_posix())
    readme.write_text(f"{head}{_MARKS[0]}\n{text}{_MARKS[1]}{tail}")


def _pool(benchmarks: list[dict[str, Any]]) -> list[dict[str, Any]]:
    groups: dict[tuple[str, int, str], list[dict[str, Any]]] = {}
    for row in benchmarks:
        info = row["extra_info"]
        groups.setdefault((info["case"], info["threads"], info["contestant"]), []).append(row)
    rows = []
    for laps in groups.values():
        info = laps[0]["extra_info"]
        quiet = [lap for lap in laps if lap["extra_info"]["other_load"] <= BUSY]
        laps = quiet or laps
        times = [seconds for lap in laps for seconds in lap["stats"]["data"]]
        median = statistics.median(times)
        low, _, high = statistics.quantiles(times, n=4)
        rate = info["bytes"] / median
        rows.append(
            {
                **{key: info[key] for key in ("operator", "shape", "dtype", "contestant", "ours", "threads", "work")},
                "median_ms": median * 1e3,
                "quartiles_ms": [low * 1e3, high * 1e3],
                "min_ms": min(times) * 1e3,
                "rounds": len(times),
                "gb_per_s": rate / 1e9,
                "percent_of_bandwidth": 100 * rate / info["bandwidth"],
                "bandwidth_gb_per_s": info["bandwidth"] / 1e9,
                **({"peak_growth_mb": info["peak_growth"] / 1e6} if "peak_growth" in info else {}),
                "other_load_cores": max(lap["extra_info"]["other_load"] for lap in laps),
            }
        )
    return rows


def _markdown(results: dict[str, Any]) -> str:
    rows = results["rows"]
    bandwidths: dict[int, list[float]] = {}
    for row in rows:
        bandwidths.setdefault(row["threads"], []).append(row["bandwidth_gb_per_s"])
    kind = "read" if results["device"] == "cpu" else "copy"
    roofs = ", ".join(
        f"{min(rates):.3g} to {max(rates):.3g} GB/s with {count} thread{'s' * (count > 1)}"
        for count, rates in sorted(bandwidths.items())
    )
    versions = "; ".join(sorted({_measured_on(row) for row in rows}))
    lines = [
        f"{results['machine']}. {versions}. Medians; bandwidth measured in the same runs ({kind}): {roofs}.",
        "",
        "| operator | shape | threads | eager ms | compile ms | fastmem ms | vs eager | vs compile | vs peer | GB/s "
        "| % of bandwidth |",
        "|---|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|",
    ]
    lines += [_line(row, rows) for row in rows if row["ours"]]
    return "\n".join(lines) + "\n"


def _measured_on(row: dict[str, Any]) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in row["versions"].items())
    return f"{versions}, commit {row['commit']}, {row['date']}"


def _brief(results: dict[str, Any], folder: str) -> str:
    """What a README has room for: what was compared, with the most threads."""
    rows = results["rows"]
    most = max((row["threads"] for row in rows), default=1)
    lines = [
        f"{results['machine']}, {most} thread{'s' * (most > 1)}; medians. Everything, with versions and bandwidths: "
        f"[{folder}/results.md]({folder}/results.md).",
        "",
        "| operator | shape | eager ms | fastmem ms | vs eager | vs compile | vs peer |",
        "|---|---|--:|--:|--:|--:|--:|",
    ]
    for row in rows:
        one = _Compared.of(row, rows)
        native = row["ours"] and not row["contestant"].endswith("reference")
        if native and row["threads"] == most and (one.baseline or one.over_peers):
            lines.append(
                f"| {one.name} | {row['shape']} {row['dtype']} | {one.baseline} | {_three(row['median_ms'])} | "
                f"{one.over_baseline} | {one.over_compiled} | {one.over_peers} |"
            )
    return "\n".join(lines) + "\n"


def _line(row: dict[str, Any], rows: list[dict[str, Any]]) -> str:
    one = _Compared.of(row, rows)
    return (
        f"| {one.name} | {row['shape']} {row['dtype']} | {row['threads']} | {one.baseline} | {one.compiled} | "
        f"{_three(row['median_ms'])} | {one.over_baseline} | {one.over_compiled} | {one.over_peers} | {row['gb_per_s']:.3g} | "
        f"{row['percent_of_bandwidth']:.0f} |"
    )


def _three(value: float) -> str:
    """Three digits that mean something: ``0.618``, ``45.4``, ``1,650``."""
    return f"{float(f'{value:.3g}'):,.10g}"


@dataclass(frozen=True)
class _Compared:
    """A row of ours beside the other contestants of its case, as it is printed."""

    name: str
    baseline: str
    compiled: str
    over_baseline: str
    over_compiled: str
    over_peers: str

    @classmethod
    def of(cls, row: dict[str, Any], rows: list[dict[str, Any]]) -> _Compared:
        same = [other for other in rows if _case(other) == _case(row) and not other["ours"]]

        def against(name: str) -> tuple[str, str]:
            found = next((other for other in same if other["contestant"] == name), None)
            if found is None:
                return "", ""
            return _three(found["median_ms"]), f"{_three(found['median_ms'] * row['work'] / row['median_ms'])}x"

        first = next((other["contestant"] for other in same if other["contestant"] != "compile"), "eager")
        (baseline, over_baseline), (compiled, over_compiled) = against(first), against("compile")
        peers = [other for other in same if other["contestant"] not in (first, "compile")]
        over_peers = ", ".join(f"{against(peer['contestant'])[1]} {peer['contestant']}" for peer in peers)
        backend = row["contestant"].removeprefix("fastmem").strip(" ,")
        busy = " (busy machine)" if row["other_load_cores"] > BUSY else ""
        title = row["operator"] + (f" ({first})" if first != "eager" else "")
        return cls(
            f"{title}{f', {backend}' if backend else ''}{busy}",
            baseline, compiled, over_baseline, over_compiled, over_peers,
        )  # fmt: skip
