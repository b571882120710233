"""The tables of a rewinding study: arms, the published ordering, and how the scores go together."""

from __future__ import annotations

import math

from markupsafe import Markup

from fastmem.report.artifacts import Fields
from fastmem.report.rewind.run import Arm, Estimate, Run, readable_level
from fastmem.report.tables import Cell, Column, Table, count, fixed, percent, signed, span

__all__ = ["PAIR_TITLES", "arm_table", "attack_table", "claim_table", "mass_table", "pair_table"]

_LEVELS = ("0.01", "0.001")
#: What the comparison of two scores shows.
PAIR_TITLES = {
    "pve/tfo": ("PVE and TFO", "the published pair"),
    "kl_only/tfo": ("KL alone and TFO", "the first saw no member"),
    "grad/tfo": ("PVE without |w| and TFO", "the common factor left out of one"),
    "weight/tfo": ("|w| and TFO", "the common factor alone"),
    "weight/pve": ("|w| and PVE", "the common factor alone"),
    "past/tfo": ("PAST and TFO", "another privacy score"),
    "moved/tfo": ("|w - w0| and TFO", "no gradient"),
    "random/tfo": ("Random and TFO", "chance"),
}


def arm_table(run: Run) -> Markup:
    """A row per arm: utility, and what the headline attack finds."""
    title = run.attacks.get(run.attack, run.attack)
    columns = [
        Column("Models", numeric=False),
        Column("Test accuracy", "standard deviation; against no defence"),
        Column("Loss", "members / test"),
        Column(f"AUC, {title}", "95% interval; against no defence"),
        *(Column(f"TPR at {readable_level(level)} FPR", "95% interval") for level in _LEVELS),
    ]
    rows = [_arm_row(run, arm) for arm in run.arms]
    main = run.main
    highlight = run.arms.index(main) if main in run.arms else None
    caption = "Utility and what an adaptive attacker finds; every model of an arm was treated alike"
    return Table(caption, columns, rows, highlight).html()


def _arm_row(run: Run, arm: Arm) -> list[Cell | str]:
    auc, gap = arm.auc(run.attack), arm.auc_gap(run.attack)
    use, less = arm.mean("test_accuracy"), arm.accuracy_gap()
    first = arm.key == "none"
    return [
        Cell(arm.title),
        Cell(percent(use), [f"sd {percent(arm.std('test_accuracy'))}", *([] if first else [_points(less)])]),
        Cell(f"{fixed(arm.mean('train_loss'))} / {fixed(arm.mean('test_loss'))}"),
        Cell(fixed(auc.value), [span(fixed(auc.low), fixed(auc.high)), *([] if first else [_signed(gap)])]),
        *(_tpr(run, arm, level) for level in _LEVELS),
    ]


def _tpr(run: Run, arm: Arm, level: str) -> Cell:
    found = arm.tpr(run.attack, level)
    if not arm.resolvable(run.attack, level):
        return Cell(percent(found.value), ["not resolvable"], tone="muted")
    return Cell(percent(found.value), [span(percent(found.low, unit=False), percent(found.high))])


def attack_table(run: Run) -> Markup:
    """AUC of every attack on every arm, beside its control."""
    columns = [Column("Models", numeric=False), *(Column(title, "AUC; shuffled") for title in run.attacks.values())]
    rows: list[list[Cell | str]] = []
    for arm in run.arms:
        cells: list[Cell | str] = [Cell(arm.title)]
        for key in run.attacks:
            control = arm.entry.child("attacks").child(key).child("controls").child("shuffled")
            cells.append(Cell(fixed(arm.auc(key).value), [f"shuffled {fixed(control.number('auc'))}"]))
        rows.append(cells)
    return Table("AUC by attack, and the same attack where membership is shuffled (chance 0.5)", columns, rows).html()


def claim_table(run: Run) -> Markup:
    """What the paper orders, and whether it is so here."""
    columns = [
        Column("Claim", numeric=False),
        Column("Difference", "mean over models, 95% interval"),
        Column("Here", numeric=False),
    ]
    rows: list[list[Cell | str]] = []
    for claim in run.claims:
        area = claim.text("figure") == "auc"
        gap = Estimate(*(claim.number(name) for name in ("mean", "low", "high")))
        verdict = {"True": Cell("holds", tone="good"), "False": Cell("the reverse", tone="bad")}.get(
            claim.text("holds"), Cell("not told apart", tone="muted")
        )
        what = "AUC" if area else "test accuracy"
        rows.append([Cell(claim.text("claim")), Cell(_signed(gap) if area else _points(gap), [what]), verdict])
    return Table("The published ordering, asked of these models", columns, rows).html()


def pair_table(run: Run) -> Markup:
    """How two scores rank the same weights, all layers and by kind."""
    pairs = run.summary.child("entanglement").child("pairs")
    kinds = list(dict.fromkeys(kind for pair in pairs.children().values() for kind in pair.data if kind != "all"))
    columns = [
        Column("Scores", numeric=False),
        Column("Pearson", "of logarithms"),
        Column("Spearman"),
        Column("Top 1% shared", "by chance 1%; Jaccard"),
        *(Column(kind, "Pearson; top 1% shared") for kind in kinds if len(kinds) > 1),
    ]
    rows: list[list[Cell | str]] = []
    for name, pair in pairs.children().items():
        title, note = PAIR_TITLES.get(name, (name, ""))
        whole = pair.child("all")
        cells: list[Cell | str] = [
            Cell(title, [note] if note else []),
            Cell(_range(whole, "pearson"), [f"log {_range(whole, 'pearson_log')}"]),
            Cell(_range(whole, "spearman")),
            Cell(percent(whole.child("overlap").number("mean")), [f"Jaccard {_range(whole, 'jaccard')}"]),
        ]
        for kind in kinds if len(kinds) > 1 else ():
            own = pair.child(kind)
            shared = percent(own.child("overlap").number("mean"))
            cells.append(Cell(fixed(own.child("pearson").number("mean")), [f"{shared} shared"]))
        rows.append(cells)
    models = count(run.summary.child("entanglement").number("models"))
    return Table(f"Agreement of scores; means over {models} models, and their range", columns, rows).html()


def mass_table(run: Run) -> Markup:
    """Share of the whole score in its top."""
    mass = run.summary.child("entanglement").child("mass")
    tops = list(next(iter(mass.children().values())).data) if mass.data else []
    columns = [Column("Score", numeric=False), *(Column(f"top {readable_level(top)}") for top in tops)]
    rows: list[list[Cell | str]] = [
        [Cell(name.upper()), *(Cell(percent(entry.child(top).number("mean"))) for top in tops)]
        for name, entry in mass.children().items()
    ]
    return Table("Share of the total score that the top weights hold", columns, rows).html()


def _range(entry: Fields, name: str) -> str:
    found = entry.child(name)
    if not math.isfinite(found.number("mean")):
        return fixed(float("nan"))
    ends = span(fixed(found.number("min")), fixed(found.number("max")))
    return f"{fixed(found.number('mean'))} ({ends})"


def _signed(gap: Estimate) -> str:
    ends = f" ({signed(gap.low)} to {signed(gap.high)})" if math.isfinite(gap.low) else ""
    return signed(gap.value) + ends


def _points(gap: Estimate) -> str:
    ends = f" ({100 * gap.low:+.1f} to {100 * gap.high:+.1f})" if math.isfinite(gap.low) else ""
    return f"{100 * gap.value:+.1f} points{ends}" if math.isfinite(gap.value) else ""
