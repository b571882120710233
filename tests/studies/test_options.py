"""Options, YAML and the dataclass say the same; whatever is wrong with them is one line."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from jsonargparse import ArgumentParser, set_parsing_settings

from fastmem.attacks import ATTACKS
from fastmem.errors import FastmemError
from fastmem.studies.attack.config import OPTION_GROUPS as ATTACK_GROUPS
from fastmem.studies.attack.config import AttackConfig
from fastmem.studies.audit.config import OPTION_GROUPS as AUDIT_GROUPS
from fastmem.studies.audit.config import AuditConfig
from fastmem.studies.options import add_options, from_options, parse, to_yaml
from fastmem.training import Recipe


@pytest.fixture
def parser() -> ArgumentParser:
    set_parsing_settings(docstring_parse_attribute_docstrings=True)
    parser = ArgumentParser(prog="fastmem audit", exit_on_error=False, print_config=None)
    parser.add_argument("--config", action="config")
    add_options(parser, AuditConfig, AUDIT_GROUPS)
    return parser


@pytest.mark.parametrize(("config", "groups"), [(AuditConfig, AUDIT_GROUPS), (AttackConfig, ATTACK_GROUPS)])
def test_every_field_is_in_one_group_and_documented(config: type, groups: dict[str, tuple[str, ...]]) -> None:
    set_parsing_settings(docstring_parse_attribute_docstrings=True)
    parser = ArgumentParser(exit_on_error=False)
    add_options(parser, config, groups)
    grouped = [name for names in groups.values() for name in names]
    assert sorted(grouped) == sorted({field.name for field in dataclasses.fields(config)} - {"recipe"})
    for action in parser._actions:
        assert action.help, action.option_strings


def test_no_options_give_the_defaults(parser: ArgumentParser) -> None:
    assert from_options(AuditConfig, parse(parser, [])) == AuditConfig()


def test_options_reach_their_fields(parser: ArgumentParser) -> None:
    options = (
        "--data x.npz --num-models 8 --model-args.hidden [3,4] --recipe.learning-rate 0.2 --recipe.milestones [1,2]"
    )
    more = "--recipe.schedule step --attacks loss,top3 --out a/b --no-save-models --save-logits --queries flip"
    config = from_options(AuditConfig, parse(parser, [*options.split(), *more.split()]))
    assert config == AuditConfig(
        data="x.npz",
        num_models=8,
        model_args={"hidden": [3, 4]},
        recipe=Recipe(learning_rate=0.2, schedule="step", milestones=(1, 2)),
        attacks="loss,top3",
        out=Path("a/b"),
        save_models=False,
        save_logits=True,
        queries="flip",
    )


def test_underscores_are_understood(parser: ArgumentParser) -> None:
    config = from_options(AuditConfig, parse(parser, ["--num_models=8", "--recipe.batch_size", "7"]))
    assert (config.num_models, config.recipe.batch_size) == (8, 7)


def test_yaml_gives_the_config_back(parser: ArgumentParser, tmp_path: Path) -> None:
    config = AuditConfig(
        num_models=10,
        model_args={"hidden": [3]},
        recipe=Recipe(schedule="step", milestones=(3,)),
        out=Path("x"),
        pool=5,
    )
    (tmp_path / "config.yaml").write_text(to_yaml(config))
    again = from_options(AuditConfig, parse(parser, ["--config", str(tmp_path / "config.yaml")]))
    assert again == config
    changed = from_options(AuditConfig, parse(parser, ["--config", str(tmp_path / "config.yaml"), "--num-models", "4"]))
    assert changed == dataclasses.replace(config, num_models=4)


def test_a_list_of_attacks_in_yaml_is_a_list(parser: ArgumentParser, tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("attacks: [loss, lira_online]\n")
    config = from_options(AuditConfig, parse(parser, ["--config", str(tmp_path / "config.yaml")]))
    assert config.attack_keys == ("loss", "lira_online")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--dta x", r"^--dta: no such option; did you mean --data"),
        ("--num-models many", r"^--num-models: 'many'; give a whole number"),
        ("--recipe.epochs 1.5", r"^--recipe.epochs: '1.5'; give a whole number"),
        ("--recipe.learning-rate fast", r"^--recipe.learning-rate: 'fast'; give a number"),
        ("--recipe.optimizer sgdd", r"^optimizer: unknown name 'sgdd'; did you mean 'sgd'"),
        ("--recipe.epochs 0", r"^epochs: 0; give at least 1"),
        ("--num-models 7", r"^num_models: 7; give an even number"),
        ("--null-models -2", r"^null_models: -2; give an even number"),
        ("--design rnk", r"^design: unknown name 'rnk'; did you mean 'rank'"),
        ("--device gpu", r"^device: unknown name 'gpu'"),
        ("--targets 65", r"^targets: 65; give a number from 1 to 64"),
        ("--workers 0", r"^workers: 0; give at least 1"),
        ("--seed -1", r"^seed: -1"),
        ("--data", r"--data: expected one argument"),
        ("extra", r"unexpected 'extra'"),
        ("--config missing.yaml", r"--config.*missing.yaml"),
    ],
)
def test_a_wrong_option_is_one_line_with_its_remedy(parser: ArgumentParser, options: str, message: str) -> None:
    def read() -> None:
        from_options(AuditConfig, parse(parser, options.split()))

    with pytest.raises(FastmemError, match=message) as caught:
        read()
    assert "\n" not in str(caught.value)


def test_an_unknown_name_in_the_yaml_is_refused(parser: ArgumentParser, tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("num_modelz: 3\n")
    with pytest.raises(FastmemError, match="num_modelz"):
        parse(parser, ["--config", str(tmp_path / "config.yaml")])


def test_all_attack_keys_are_strings_that_commas_can_part() -> None:
    assert AuditConfig(attacks=", ".join(ATTACKS)).attack_keys == tuple(ATTACKS)
