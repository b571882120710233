"""The ``fastmem`` command: a thin face over the studies.

Nothing heavy is imported before a command is known. Whatever a user can cause becomes one line on standard error and
exit code 2; a traceback is a bug of fastmem, and ``--debug`` shows the others too.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from fastmem.errors import FastmemError, InputError, UnknownNameError

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser
    from rich.table import Table

__all__ = ["main"]

Config = TypeVar("Config")

_HEAD = """usage: fastmem COMMAND [options]

What does a neural network remember of its training data?

"""

_TAIL = """
fastmem COMMAND --help explains a command and lists its options.
Start with: fastmem audit
"""

_AUDIT_HELP = """Which records of a data set can an attacker name as training data of a model?

Trains many models, each on a random half of a pool of records, so that for
every record some models saw it and some did not. Each model is attacked in
turn with the help of all the others, by every membership attack asked for.
Shows how many members an attacker finds at few false alarms, beside two
controls where there is nothing to find, and writes a report. A run that was
interrupted continues when the same command is given again.

examples:
  fastmem audit                    scikit-learn's digits, 64 models
  fastmem audit --data fashion-mnist --data-root ~/data
  fastmem audit --data cifar10 --model resnet18 --num-models 16 --queries flip
  fastmem audit --data records.npz --model package.module:Net --dry-run

a model of your own, with shadow models of the same network and recipe:
  fastmem audit --data records.npz --model package.module:Net
      --checkpoint model.safetensors --members trained_on.npy

on several machines, over a shared folder or an object store:
  fastmem audit ... --engine ray --ray-address auto --store s3://bucket/run
  fastmem audit ... --out /shared/run --shard 3/8    (one job of eight)
  fastmem audit ... --out /shared/run                (when all have ended)"""

_ATTACK_HELP = """Membership attacks on what models said, without training anything.

Give the folder of an audit, or three arrays: logits [M, N, C] of M models on
N records, keep [M, N] (who trained on what) and labels [N]. Each model is the
target once, all others are the attacker's.

examples:
  fastmem attack --logits logits.npy --keep keep.npy --labels labels.npy
  fastmem attack --signals runs/audit-digits --attacks lira_online,rmia_online"""

_CANARY_HELP = """Does a mark that occurs once in training leave a trace in the model?

Pastes a mark into one training record, or a few, and trains pairs of models
of the same initial weights, order and images, one with the mark and one
without. Shows the mark on images that neither saw, scores how far it moves
their answers (M score), and tests the differences within pairs. Beside stand
control marks, models that never saw any, and the tests of the papers, which
reject for models that never saw the mark. An interrupted run continues when
the same command is given again.

examples:
  fastmem canary                   scikit-learn's digits, 20 pairs
  fastmem canary --copies 1,10,100 --regularise none,dropout,weight-decay
  fastmem canary --data mnist --data-root ~/data --model cnn --nulls 40
  fastmem canary --data mnist --evaluation cifar10 --feature mark.png
  fastmem canary --data mnist --checkpoint model.safetensors --label 3"""

_TRUST_HELP = """How far can prediction-score membership attacks be believed?

Trains pairs of a target and a shadow model, fits the published attacks on the
shadow model, and asks about members and about sets that nobody trained on:
test records, permuted and badly preprocessed ones, noise, other data sets, and
images of a generator that is trained on the way. Does it again with calibrated
models, draws false members until there are as many as asked for, and shows
what an untrained model makes of the same. A run that was interrupted continues
when the same command is given again.

examples:
  fastmem trust                    scikit-learn's digits, 4 pairs
  fastmem trust --data fashion-mnist --data-root ~/data --model cnn
      --num-models 2 --nonmembers all,mnist --recipe.epochs 20
  fastmem trust --data cifar10 --model resnet18 --calibrations laplace
  fastmem trust --generator package.module:function --false-members 10000"""

_FEW_SHOT_HELP = """What leaks to an attacker who knows only a handful of members?

Trains a model, tells an attacker of a few records whether the model trained on
them, and asks about others: hundreds of times, for every number of known
records and every method asked for. Beside stand the same attack on a model
that never saw the records, on shuffled membership and on random features,
simple thresholds that know as many records, and shadow-model attacks on the
same model, each with what it had to be told and what it found. A run that was
interrupted continues when the same command is given again.

examples:
  fastmem few-shot                 scikit-learn's digits
  fastmem few-shot --data cifar10 --model cnn --recipe.stop-at-train-accuracy 0.6
  fastmem few-shot --task text --text book.txt --variants simpleshot,tim
  fastmem few-shot --features saved.npz --shots 5,10 --episodes 500"""

_RECONSTRUCT_HELP = """Which training images can be read out of the weights?

Trains a network on a few images until its weights are a sum of its gradients
there, then searches for images whose gradients add up to those weights. Shows
every training image beside what was found, and beside what costs no attack:
rows of the first layer, the mean image, random candidates, images that were
never trained on. Attacks a checkpoint of your own, too. A run that was
interrupted continues when the same command is given again.

examples:
  fastmem reconstruct              10 of scikit-learn's digits
  fastmem reconstruct --data mnist --data-root ~/data --n 20 --victims 5
  fastmem reconstruct --data mnist --sweep 32 --iterations 1000
  fastmem reconstruct --data mnist --checkpoint model.safetensors
      --members trained_on.npy
  fastmem reconstruct --data cifar10 --n 100 --preset cifar-b9dfyspx"""

_REWIND_HELP = """Do a few weights carry the privacy risk, and does rewinding them help?

Trains many models, each on a random half of a pool of records, finds the
weights of each that carry most risk, puts them back to their values before
training, freezes them there, and trains the rest on. Beside that stand the
published ablations and defences and controls at equal compute: random
weights, other scores, no rewinding at all. Every arm is judged by attackers
whose own models went through the same. A run that was interrupted continues
when the same command is given again.

examples:
  fastmem rewind                   scikit-learn's digits, 32 models
  fastmem rewind --data fashion-mnist --data-root ~/data --model cnn
      --fractions [0.001,0.01,0.03] --tune-epochs 20
  fastmem rewind --data cifar10 --model resnet18 --methods cwrf,tune_only
  fastmem rewind --loss ce --methods cwrf,tune,random,dp_sgd

a model of your own, repaired (and attacked, with models of its recipe):
  fastmem rewind --data records.npz --model package.module:Net
      --checkpoint final.safetensors --initial init.safetensors
      --members trained_on.npy --reference not_trained_on.npy"""

_REPORT_HELP = """usage: fastmem report DIR

Draws report.html of a finished run again, from its summary.json, scores.csv and report_data.npz.
"""

_INFO_HELP = """usage: fastmem info

Shows versions, devices, data folders, and for each operator which implementation would run and why.
"""


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
        print(_HEAD + commands + _TAIL, end="")
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

    read = _read("audit", _AUDIT_HELP, AuditConfig, OPTION_GROUPS, arguments, _run_options, _audit_options)
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

    read = _read("canary", _CANARY_HELP, CanaryConfig, OPTION_GROUPS, arguments, _run_options, _canary_options)
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


def _trust(arguments: list[str]) -> None:
    from fastmem.studies.trust.config import OPTION_GROUPS, TrustConfig

    read = _read("trust", _TRUST_HELP, TrustConfig, OPTION_GROUPS, arguments, _run_options)
    if read is None:
        return
    config, options = read

    from fastmem.report.trust import trust_table
    from fastmem.studies.terminal import Terminal
    from fastmem.studies.trust import run_trust

    result = run_trust(config, options.fresh, Terminal())
    _print_results(result.summary, str(result.run_dir), trust_table(result.summary))


def _few_shot(arguments: list[str]) -> None:
    from fastmem.studies.few_shot.config import OPTION_GROUPS, FewShotConfig

    read = _read("few-shot", _FEW_SHOT_HELP, FewShotConfig, OPTION_GROUPS, arguments, _run_options)
    if read is None:
        return
    config, options = read

    from fastmem.report.few_shot import few_shot_table
    from fastmem.studies.few_shot import run_few_shot
    from fastmem.studies.terminal import Terminal

    result = run_few_shot(config, options.fresh, Terminal())
    _print_results(result.summary, str(result.run_dir), few_shot_table(result.summary))


def _reconstruct(arguments: list[str]) -> None:
    from fastmem.studies.reconstruct.config import OPTION_GROUPS, ReconstructConfig

    read = _read("reconstruct", _RECONSTRUCT_HELP, ReconstructConfig, OPTION_GROUPS, arguments, _run_options)
    if read is None:
        return
    config, options = read

    from fastmem.report.reconstruct import reconstruct_table
    from fastmem.studies.reconstruct import run_reconstruct
    from fastmem.studies.terminal import Terminal

    result = run_reconstruct(config, options.fresh, Terminal())
    _print_results(result.summary, str(result.run_dir), reconstruct_table(result.summary))


def _rewind(arguments: list[str]) -> None:
    from fastmem.studies.rewind.config import OPTION_GROUPS, RewindConfig

    read = _read("rewind", _REWIND_HELP, RewindConfig, OPTION_GROUPS, arguments, _run_options)
    if read is None:
        return
    config, options = read

    from fastmem.report.rewind import rewind_table
    from fastmem.studies.rewind import run_rewind
    from fastmem.studies.terminal import Terminal

    result = run_rewind(config, options.fresh, Terminal())
    _print_results(result.summary, str(result.run_dir), rewind_table(result.summary))


def _list_option(parser: ArgumentParser) -> None:
    parser.add_argument("--list", action="store_true", help="list the attacks and stop")


def _attack(arguments: list[str]) -> None:
    from fastmem.studies.attack.config import OPTION_GROUPS, AttackConfig

    read = _read("attack", _ATTACK_HELP, AttackConfig, OPTION_GROUPS, arguments, _list_option)
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
        print(_REPORT_HELP, end="")
        return
    if len(arguments) != 1:
        raise InputError("report", f"{len(arguments)} arguments", "give the folder of a run: fastmem report DIR")
    from fastmem.report.redraw import write_report

    print(write_report(arguments[0]))


def _info(arguments: list[str]) -> None:
    if arguments and arguments[0] in ("-h", "--help"):
        print(_INFO_HELP, end="")
        return
    if arguments:
        raise InputError("info", f"unexpected {arguments[0]!r}", "it takes no arguments")
    from fastmem.studies.info import info_lines

    _print_pairs(info_lines())


_COMMANDS: dict[str, tuple[str, Callable[[list[str]], None]]] = {
    "audit": ("who is in the training set? train shadow models, attack them, write a report", _audit),
    "canary": ("does a mark seen once in training leave a trace? M score of seed-matched pairs", _canary),
    "trust": ("can prediction-score attacks be believed? other non-members, fakes, calibration", _trust),
    "few-shot": ("how much leaks to an attacker who knows only a handful of members?", _few_shot),
    "reconstruct": ("which training images can be read out of the weights? with what costs no attack", _reconstruct),
    "rewind": ("do a few weights carry the risk? rewind them, tune the rest, attack again", _rewind),
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
