"""From pytest-benchmark's JSON to the committed results: ``results.json`` and ``results.md``.

A run of some cases replaces their rows and leaves the others as they are, so every row says what it was measured on.
"""

from __future__ import annotations

import datetime
import json
import statistics
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
    """Replace the table between the two marks of the README by the one in ``folder``."""
    head, rest = readme.read_text().split(_MARKS[0], 1)
    _, tail = rest.split(_MARKS[1], 1)
    readme.write_text(f"{head}{_MARKS[0]}\n{(folder / 'results.md').read_text()}{_MARKS[1]}{tail}")


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


def _line(row: dict[str, Any], rows: list[dict[str, Any]]) -> str:
    same = [other for other in rows if _case(other) == _case(row) and not other["ours"]]

    def against(name: str) -> tuple[str, str]:
        found = next((other for other in same if other["contestant"] == name), None)
        if found is None:
            return "", ""
        return f"{found['median_ms']:.3g}", f"{found['median_ms'] * row['work'] / row['median_ms']:.3g}x"

    baseline = next((other["contestant"] for other in same if other["contestant"] != "compile"), "eager")
    (eager, over_eager), (compiled, over_compiled) = against(baseline), against("compile")
    peers = [other for other in same if other["contestant"] not in (baseline, "compile")]
    over_peers = ", ".join(f"{against(peer['contestant'])[1]} {peer['contestant']}" for peer in peers)
    backend = row["contestant"].removeprefix("fastmem ")
    busy = " (busy machine)" if row["other_load_cores"] > BUSY else ""
    name = row["operator"] + (f" ({baseline})" if baseline != "eager" else "")
    return (
        f"| {name}, {backend}{busy} | {row['shape']} {row['dtype']} | {row['threads']} | {eager} | {compiled} | "
        f"{row['median_ms']:.3g} | {over_eager} | {over_compiled} | {over_peers} | {row['gb_per_s']:.3g} | "
        f"{row['percent_of_bandwidth']:.0f} |"
    )
