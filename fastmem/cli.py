"""The ``fastmem`` command: a thin face over the studies.

Nothing heavy is imported before a command is known. Whatever a user can cause becomes one line on standard error and
exit code 2; a traceback is a bug of fastmem, and ``--debug`` shows the others too.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from fastmem import cli_help
from fastmem.errors import FastmemError, InputError, UnknownNameError

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser
    from rich.table import Table

__all__ = ["main"]

Config = TypeVar("Config")

_LOG_WIDTH = 110


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command.

    Args:
        arguments: What follows ``fastmem`` on the command line; by default this process's.

    Returns:
        The exit code: 0, 2 for input that cannot be used, 130 after Ctrl-C.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in given
    try:
        return _dispatch([argument for argument in given if argument != "--debug"])
    except FastmemError as error:
        if debug:
            raise
        print(f"fastmem: error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt as interrupt:
        kept = f"; {interrupt}" if str(interrupt) else ""
        print(f"fastmem: interrupted{kept}; the same command continues", file=sys.stderr)
        return 130


def _dispatch(arguments: list[str]) -> int:
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        width = max(map(len, _COMMANDS))
        commands = "".join(f"  {name:<{width}}  {summary}\n" for name, (summary, _) in _COMMANDS.items())
        print(cli_help.HEAD + commands + cli_help.TAIL, end="")
        return 0
    if arguments[0] == "--version":
        import fastmem

        print(f"fastmem {fastmem.__version__}")
        return 0
    name, *rest = arguments
    if name not in _COMMANDS:
        raise UnknownNameError("command", name, _COMMANDS)
    _COMMANDS[name][1](rest)
    return 0


def _run_options(parser: ArgumentParser) -> None:
    """Options of every study that trains models."""
    parser.add_argument(
        "--resume", action="store_true", help="continue an earlier run in the same folder (this is the default)"
    )
    parser.add_argument(
        "--fresh", action="store_true", help="start over: forget what an earlier run left in the folder"
    )


def _read(
    command: str,
    description: str,
    config_class: type[Config],
    groups: Mapping[str, Sequence[str]],
    arguments: list[str],
    *more: Callable[[ArgumentParser], None],
) -> tuple[Config, Any] | None:
    """The config that a command line asks for, and its other options; None where it was only to be printed."""
    from fastmem.studies.options import add_options, from_options, parse, to_yaml

    parser = _parser(command, description)
    for add in more:
        add(parser)
    add_options(parser, config_class, groups)
    options = parse(parser, arguments)
    config = from_options(config_class, options)
    if options.print_config:
        print(to_yaml(config), end="")
        return None
    if _run_options in more and options.fresh and options.resume:
        raise InputError("fresh", "given beside --resume", "give one of them")
    return config, options


def _audit_options(parser: ArgumentParser) -> None:
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="show the plan and what it will cost, measured from a few steps, and stop",
    )
    parser.add_argument(
        "--shard",
        metavar="I/N",
        help="train and query every N-th model only, from the I-th on, beside other shards; when all have ended, the "
        "same command without --shard attacks and reports",
    )


def _audit(arguments: list[str]) -> None:
    from fastmem.studies.audit.config import OPTION_GROUPS, AuditConfig

    read = _read("audit", cli_help.AUDIT, AuditConfig, OPTION_GROUPS, arguments, _run_options, _audit_options)
    if read is None:
        return
    config, options = read

    from fastmem.report.audit import audit_table
    from fastmem.studies.audit import run_audit, run_shard
    from fastmem.studies.audit.shard import Shard
    from fastmem.studies.terminal import Terminal

    shard = None if options.shard is None else Shard.of(options.shard)
    if shard is not None and options.fresh:
        raise InputError(
            "fresh", "given beside --shard", "shards would delete each other's rows: start over without it"
        )

    if options.dry_run:
        from fastmem.studies.audit.estimate import estimate
        from fastmem.studies.audit.plan import make_plan

        plan = make_plan(config)
        _print_pairs(estimate(plan).lines(plan))
        return
    if shard is not None:
        trained = run_shard(config, shard, Terminal())
        print(f"{shard} is done, {trained} models were trained; when all are, give the command without --shard")
        return
    result = run_audit(config, options.fresh, Terminal())
    _print_results(result.summary, str(result.run_dir), audit_table(result.summary))


def _canary_options(parser: ArgumentParser) -> None:
    parser.add_argument(
        "--questions",
        metavar="FILE",
        help="write the images that --answers are about to this .npz file (clean, feature, contrast, controls, key), "
        "and stop",
    )


def _canary(arguments: list[str]) -> None:
    from fastmem.studies.canary.config import OPTION_GROUPS, CanaryConfig

    read = _read("canary", cli_help.CANARY, CanaryConfig, OPTION_GROUPS, arguments, _run_options, _canary_options)
    if read is None:
        return
    config, options = read

    if options.questions is not None:
        from fastmem.studies.canary.questions import write_questions

        images = write_questions(config, options.questions)
        print(
            f"{options.questions} holds {images} images; answer them under the same names, copy key, and give --answers"
        )
        return

    from fastmem.report.canary import canary_table
    from fastmem.studies.canary import run_canary
    from fastmem.studies.terminal import Terminal

    result = run_canary(config, options.fresh, Terminal())
    _print_results(result.summary, str(result.run_dir), canary_table(result.summary))


def _study(command: str, description: str) -> Callable[[list[str]], None]:
    """The command of a study that reads its config, runs, and prints its table, each under the name of the study."""
    study = command.replace("-", "_")

    def run(arguments: list[str]) -> None:
        config_module = importlib.import_module(f"fastmem.studies.{study}.config")
        config_class = getattr(config_module, f"{study.title().replace('_', '')}Config")
        read = _read(command, description, config_class, config_module.OPTION_GROUPS, arguments, _run_options)
        if read is None:
            return
        config, options = read

        from fastmem.studies.terminal import Terminal

        table = getattr(importlib.import_module(f"fastmem.report.{study}"), f"{study}_table")
        run_study = getattr(importlib.import_module(f"fastmem.studies.{study}"), f"run_{study}")
        result = run_study(config, options.fresh, Terminal())
        _print_results(result.summary, str(result.run_dir), table(result.summary))

    return run


def _list_option(parser: ArgumentParser) -> None:
    parser.add_argument("--list", action="store_true", help="list the attacks and stop")


def _attack(arguments: list[str]) -> None:
    from fastmem.studies.attack.config import OPTION_GROUPS, AttackConfig

    read = _read("attack", cli_help.ATTACK, AttackConfig, OPTION_GROUPS, arguments, _list_option)
    if read is None:
        return
    config, options = read

    if options.list:
        from fastmem.attacks import ATTACKS, make_attack

        _print_pairs([(key, make_attack(key).title) for key in ATTACKS])
        return

    from fastmem.report.audit import audit_table
    from fastmem.studies.attack import run_attack
    from fastmem.studies.terminal import Terminal

    summary = run_attack(config, Terminal())
    _print_results(summary, str(config.run_dir), audit_table(summary))


def _report(arguments: list[str]) -> None:
    if arguments and arguments[0] in ("-h", "--help"):
        print(cli_help.REPORT, end="")
        return
    if len(arguments) != 1:
        raise InputError("report", f"{len(arguments)} arguments", "give the folder of a run: fastmem report DIR")
    from fastmem.report.redraw import write_report

    print(write_report(arguments[0]))


def _info(arguments: list[str]) -> None:
    if arguments and arguments[0] in ("-h", "--help"):
        print(cli_help.INFO, end="")
        return
    if arguments:
        raise InputError("info", f"unexpected {arguments[0]!r}", "it takes no arguments")
    from fastmem.studies.info import info_lines

    _print_pairs(info_lines())


_COMMANDS: dict[str, tuple[str, Callable[[list[str]], None]]] = {
    "audit": ("who is in the training set? train shadow models, attack them, write a report", _audit),
    "canary": ("does a mark seen once in training leave a trace? M score of seed-matched pairs", _canary),
    "trust": (
        "can prediction-score attacks be believed? other non-members, fakes, calibration",
        _study("trust", cli_help.TRUST),
    ),
    "few-shot": (
        "how much leaks to an attacker who knows only a handful of members?",
        _study("few-shot", cli_help.FEW_SHOT),
    ),
    "reconstruct": (
        "which training images can be read out of the weights? with what costs no attack",
        _study("reconstruct", cli_help.RECONSTRUCT),
    ),
    "rewind": (
        "do a few weights carry the risk? rewind them, tune the rest, attack again",
        _study("rewind", cli_help.REWIND),
    ),
    "attack": ("the same attacks on logits or signals that you already have", _attack),
    "report": ("draw the report of a finished run again", _report),
    "info": ("versions, devices, and the backend of each operator with the reason", _info),
}


def _parser(command: str, description: str) -> ArgumentParser:
    from jsonargparse import ArgumentParser, set_parsing_settings

    from fastmem.studies.options import HelpFormatter

    set_parsing_settings(docstring_parse_attribute_docstrings=True)
    parser = ArgumentParser(
        prog=f"fastmem {command}",
        description=description,
        usage=f"fastmem {command} [options]",
        formatter_class=HelpFormatter,
        exit_on_error=False,
        print_config=None,
    )
    parser.add_argument(
        "--config", action="config", metavar="FILE", help="read options from a YAML file; later options override it"
    )
    parser.add_argument(
        "--print-config", action="store_true", help="print all options as YAML, ready for --config, and stop"
    )
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    return parser


def _print_results(summary: dict[str, Any], run_dir: str, table: Table) -> None:
    from rich.console import Console

    # A log has no width of its own; the table needs this much.
    console = Console(highlight=False, width=None if sys.stdout.isatty() else _LOG_WIDTH)
    console.print()
    console.print(summary["answer"], style="bold", markup=False)
    console.print()
    console.print(table)
    for warning in summary["warnings"]:
        console.print(f"warning: {warning}", style="yellow", markup=False)
    console.print(
        f"\n{run_dir}/report.html has the whole report; summary.json, scores.csv and config.yaml lie beside it.",
        markup=False,
    )


def _print_pairs(pairs: list[tuple[str, str]]) -> None:
    width = max(len(name) for name, _ in pairs)
    for name, text in pairs:
        first, *more = text.splitlines() or [""]
        print(f"{name:<{width}}  {first}")
        for line in more:
            print(" " * (width + 2) + line)
