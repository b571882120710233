"""A config dataclass as command line options and as YAML, from its field types and docstrings.

``data_root`` becomes ``--data-root``, a nested ``recipe.epochs`` becomes ``--recipe.epochs``, and the same names are
the keys of the YAML file.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import re
import typing
from argparse import RawDescriptionHelpFormatter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import docstring_parser
import yaml
from jsonargparse import ActionYesNo, ArgumentError, ArgumentParser

from fastmem.errors import InputError

__all__ = ["add_options", "from_options", "parse", "plain", "to_yaml"]

Config = TypeVar("Config")

_TYPE_WORDS = {
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "str": "a text",
    "dict": "names and values, as in --model-args.hidden [64]",
}


def add_options(parser: ArgumentParser, config: type, groups: Mapping[str, Sequence[str]]) -> None:
    """Adds an option for every field of a config, group by group.

    Args:
        parser: Gets the options.
        config: A dataclass whose fields have defaults and docstrings; a field that is a dataclass gets a group of its
            own.
        groups: Title of each group and the fields in it, in order.
    """
    for title, names in groups.items():
        _add_fields(parser.add_argument_group(title), config, names)
    for field in dataclasses.fields(config):
        kind = typing.get_type_hints(config)[field.name]
        if isinstance(kind, type) and dataclasses.is_dataclass(kind):
            group = parser.add_argument_group(field.name.capitalize(), _documentation(config)[field.name])
            own = field.default_factory() if callable(field.default_factory) else field.default
            _add_fields(group, kind, [inner.name for inner in dataclasses.fields(kind)], f"{_dash(field.name)}.", own)


def from_options(config: type[Config], options: Any) -> Config:
    """The config that parsed options describe; its own checks run here."""
    values = {}
    for field in dataclasses.fields(config):  # type: ignore[arg-type]
        kind = typing.get_type_hints(config)[field.name]
        value = options[field.name]
        if isinstance(kind, type) and dataclasses.is_dataclass(kind):
            value = from_options(kind, value)
        values[field.name] = dict(value) if isinstance(value, Mapping) else value
    return config(**values)


def to_yaml(config: Any) -> str:
    """The YAML text that gives the same config when it is read back."""
    return yaml.safe_dump(plain(config), sort_keys=False, allow_unicode=True)


def plain(value: Any) -> Any:
    """Dataclasses, tuples and paths as what YAML and JSON know."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {key: plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [plain(entry) for entry in value]
    return str(value) if isinstance(value, Path) else value


def parse(parser: ArgumentParser, arguments: Sequence[str]) -> Any:
    """Parses, with one line for whatever is wrong.

    Raises:
        InputError: If an option is unknown, ambiguous or has a value of another type.
    """
    known = [option for action in parser._actions for option in action.option_strings]
    # Python's own spelling is understood as well: --data_root is --data-root.
    spelled = [_dashed(argument, known) for argument in arguments]
    try:
        return parser.parse_args(spelled)
    except ArgumentError as error:
        raise _input_error(str(error), known, parser.prog) from error


def _add_fields(group: Any, config: type, names: Sequence[str], prefix: str = "", defaults: Any = None) -> None:
    """Adds options for fields of a config; ``defaults`` is an instance whose values go before those of the class."""
    fields = {field.name: field for field in dataclasses.fields(config)}
    kinds = typing.get_type_hints(config)
    help_texts = _documentation(config)
    for name in names:
        field = fields[name]
        default = field.default_factory() if callable(field.default_factory) else field.default
        if defaults is not None:
            default = getattr(defaults, name)
        option = f"--{prefix}{_dash(name)}"
        text = help_texts[name]
        if default is not None and default != {} and default != () and not isinstance(default, bool):
            text += " (%(default)s)"
        if kinds[name] is bool:
            group.add_argument(option, action=ActionYesNo(no_prefix="no-"), default=default, help=text)
        else:
            # Names are checked by the config itself, which knows the nearest ones.
            kind = str if typing.get_origin(kinds[name]) is typing.Literal else kinds[name]
            metavar = name.rpartition("_")[2].upper()
            group.add_argument(option, type=kind, default=default, help=text, metavar=metavar)


def _dash(name: str) -> str:
    return name.replace("_", "-")


@functools.cache
def _documentation(config: type) -> dict[str, str]:
    """The docstring of each field, on one line, without the final stop."""
    documented = docstring_parser.parse_from_object(config).params
    return {
        entry.arg_name: " ".join((entry.description or "").split()).rstrip(".").replace("%", "%%")
        for entry in documented
    }


def _dashed(argument: str, known: Sequence[str]) -> str:
    name, equals, value = argument.partition("=")
    dashed = name.replace("_", "-")
    return dashed + equals + value if name.startswith("--") and dashed in known else argument


def _input_error(text: str, known: Sequence[str], prog: str) -> InputError:
    """What the parser says about an option, as an error that names it, the value and the remedy."""
    line = " ".join(text.split()).rstrip(".")
    see = f"see {prog} --help"
    if unknown := re.match(r"[Uu]nrecognized arguments: (\S+)", line):
        option = unknown[1].partition("=")[0]
        if not option.startswith("--"):
            return InputError(prog, f"unexpected {unknown[1]!r}", f"options begin with --; {see}")
        near = difflib.get_close_matches(option, known, n=3)
        return InputError(option, "no such option", (f"did you mean {' or '.join(near)}? " if near else "") + see)
    if wrong := re.match(r'Parser key "([^"]+)":? (.*)', line):
        option = f"--{wrong[1].replace('_', '-')}"
        value = re.search(r"(?:Got|Given) value: (.*)", wrong[2])
        types = {str(name) for name in re.findall(r"Expected an? <class '(\w+)'>", wrong[2])} - {"NoneType"}
        if value and types:
            wanted = " or ".join(sorted(_TYPE_WORDS.get(name, name) for name in types))
            return InputError(option, f"{value[1]!r}", f"give {wanted}; {see}")
        return InputError(option, wrong[2], see)
    return InputError(prog, line, see)


class HelpFormatter(RawDescriptionHelpFormatter):
    """Keeps the paragraphs of a description, and gives options room."""

    def __init__(self, prog: str, **arguments: Any) -> None:
        super().__init__(prog, max_help_position=30, **arguments)
