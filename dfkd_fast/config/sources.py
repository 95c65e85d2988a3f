"""Sources of a config: dataclass < preset < `--config FILE` < flags. Imports no torch; a method's file does."""

from __future__ import annotations

import importlib
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from dfkd_fast.catalog import FACTS, METHODS, presets
from dfkd_fast.config.data_sets import data_set_of
from dfkd_fast.config.flag_help import HelpPage
from dfkd_fast.config.flags import Setting, from_flags, from_toml, parse
from dfkd_fast.config.own_networks import resolved
from dfkd_fast.config.record import FORMAT, config_hash
from dfkd_fast.config.setting import former_flags
from dfkd_fast.config.train import CONFIG_FILE, M, TrainConfig, check_share
from dfkd_fast.errors import UserError, refused, unknown
from dfkd_fast.messages.notes import note

NO_HELP = HelpPage()
MAX_BYTES = 2**20
"""of a config file"""
_DEEPEST = 16  # tables within tables; a config has three


def default_config(method: str) -> TrainConfig[Any]:
    """The config of a method with every default. Imports the method's file."""
    if method not in METHODS:
        raise unknown("train", method, METHODS)
    module, name = METHODS[method].split(":")
    return TrainConfig(method=getattr(importlib.import_module(module), f"{name}Config")())


def load_config(
    config: TrainConfig[M],
    *,
    preset: str | None = None,
    file: Path | None = None,
    flags: Sequence[str] = (),
    page: HelpPage = NO_HELP,
) -> TrainConfig[M]:
    """`config`, then the preset, then the file, then the flags, each over the one before. `--help` prints `page` and
    exits.
    """
    method = config.method_name
    settings: list[Setting] = []
    if preset is not None:
        known = presets(method)
        if preset not in known:
            raise unknown("--preset", preset, known)
        table = tomllib.loads(known[preset].read_text(encoding="utf-8"))
        config = _apply(config, from_toml(_without_metadata(table, method, preset), f"preset {preset}"))
        config = replace(config, teacher_data=data_set_of(preset))
    if file is not None:
        table = read_toml(file, "--config")
        settings = from_toml(_without_metadata(table, method, str(file)), str(file))
        if "written" in table:  # by a run, perhaps an older one: by the names of then
            now = former_flags(config)
            settings = [_named(each, now[each.flag]) if each.flag in now else each for each in settings]
        # of what a run has written nobody need have given anything
        config = _changed(config, settings, follow=preset is not None, keeps="written" not in table)
    written = from_flags(flags)
    config = _changed(config, written, follow=preset is not None or file is not None, page=page)
    stated = any(setting.flag == "--teacher-data" for setting in (*settings, *written))
    if preset is not None and config.train_teacher and not stated:  # it takes its values from what it learns
        return replace(config, teacher_data="")
    return config


def _changed(
    config: TrainConfig[M],
    settings: Sequence[Setting],
    *,
    follow: bool,
    keeps: bool = True,
    page: HelpPage = NO_HELP,
) -> TrainConfig[M]:
    """The settings over a config. Of a recipe that somebody has written, counts `follow` what is changed, unless they
    are given, too; each is said. The teacher's recipe `keeps` what is given.
    """
    after = _apply(config, settings, page)
    kept = given_keys(settings, "teacher_recipe") if keeps else ()
    after = replace(after, teacher_recipe=after.teacher_recipe.keeping(kept))
    check_share(after.collected_share)
    given = given_keys(settings)
    share = after.collected_share / config.collected_share if config.collected_share else 1.0
    before: Any = config.method
    recipe: Any = after.method
    known: dict[str, int] = recipe.following(before, share) if follow else {}
    known = {key: count for key, count in known.items() if key not in given}
    for key, count in known.items():
        flag = f"--{key.replace('_', '-')}"
        note(f"{flag} {count} (not {getattr(before, key)}) follows what else is changed; {flag} N sets it")
    return replace(after, method=replace(recipe, **known)) if known else after


def given_keys(settings: Iterable[Setting], section: str = "") -> set[str]:
    """Names of the fields that settings give; of `section` alone where one is named."""
    flags = [setting.flag[2:].replace("-", "_") for setting in settings]
    return {flag.rpartition(".")[2] for flag in flags if not section or flag.startswith(f"{section}.")}


def resolve(config: TrainConfig[M]) -> TrainConfig[M]:
    """The same with the user's own networks named in full: absolute paths, and their arguments in the name.

    Raises UserError for arguments that are none, or that another network would not take.
    """
    teacher = resolved(config.teacher, config.teacher_args, "--teacher")
    student = resolved(config.student, config.student_args, "--student")
    return replace(config, teacher=teacher, student=student, teacher_args=(), student_args=())


def load_run(folder: Path, flag: str = "--resume") -> TrainConfig[Any]:
    """The config that a run folder was written with; its `run_dir` is `folder`, wherever that has been moved to."""
    file = folder / CONFIG_FILE
    with refused(flag, folder):
        there = file.is_file()
    if not there:
        raise UserError(f"{flag} {folder}: no run there (it has no {CONFIG_FILE})")
    config = replace(load_config(default_config(named_method(file)), file=file), run_dir=folder)
    start = _about(read_toml(file, flag), str(file)).get("folder", "")
    return replace(config, **{key: _found(getattr(config, key), Path(start)) for key in _PATHS})


def check_untouched(folder: Path) -> None:
    """Raise UserError where a run without a checkpoint has other settings by now than it was started with."""
    file = folder / CONFIG_FILE
    config = load_config(default_config(named_method(file)), file=file)
    known = _about(read_toml(file, "--resume"), str(file)).get("config_hash")
    if known is not None and known != config_hash(config):
        raise UserError(
            f"--resume {folder}: {CONFIG_FILE} is not as the run wrote it, and there is no checkpoint to compare it "
            f"with; start a new run, with --config {file} if those are its settings"
        )


_PATHS = ("teacher_weights", "class_names", "class_order", "data", "collected", "text", "text_model")


def _found(value: Any, start: Path) -> Any:
    """A path that is relative to where the run was started, and is not here but there."""
    if value in (None, "", "digits") or Path(value).exists() or not (start / value).exists():
        return value
    return type(value)(start / value) if isinstance(value, str) else start / value


def label_text(config: TrainConfig[Any]) -> bool | None:
    """Whether the method is given what its classes are called (`--text clip` and the like), as published; False with
    vectors that are made up, None for a method that takes none.
    """
    return config.text not in ("orthogonal", "one-hot", "class-centre") if FACTS[config.method_name].text else None


def read_toml(file: Path, flag: str) -> dict[str, Any]:
    """A TOML file's table. `flag` is what named the file. Raises UserError for what is no config."""
    try:
        with file.open("rb") as opened:
            content = opened.read(MAX_BYTES + 1)
        if len(content) > MAX_BYTES:
            raise UserError(f"{flag} {file}: no config: more than {MAX_BYTES:,} bytes")
        table = tomllib.loads(content.decode("utf-8-sig"))  # some editors put a mark in front
        _check_depth(table)
        return table
    except UserError:
        raise
    except OSError as error:
        raise UserError(f"{flag} {file}: {(error.strerror or str(error)).lower()}") from error
    except RecursionError as error:
        raise UserError(f"{flag} {file}: no config: it is nested too deeply") from error
    except ValueError as error:  # no TOML, no UTF-8, a number of thousands of digits
        raise UserError(f"{flag} {file}: no valid TOML: {error}") from error


def _check_depth(table: dict[str, Any]) -> None:
    """Raise RecursionError where tables, which can be written one dot deeper for ever, lie deeper than any config's."""
    below: list[Any] = [table]
    for _ in range(_DEEPEST):
        below = [value for inside in below if isinstance(inside, dict) for value in inside.values()]
        if not below:
            return
    raise RecursionError


def named_method(file: Path) -> str:
    """The method that a config file is for: its `[method] name`."""
    section = read_toml(file, "--config").get("method")
    name = section.get("name") if isinstance(section, dict) else None
    if name not in METHODS:
        raise unknown(f"{file}: [method] name =", name, METHODS)
    return name


ALIASES = {"--label-embeddings": "--text"}
"""other names of flags; in TOML, of keys"""


def _apply(config: TrainConfig[M], settings: Sequence[Setting], page: HelpPage = NO_HELP) -> TrainConfig[M]:
    schema: Any = TrainConfig
    return parse(schema[type(config.method)], config, _renamed(settings), page=page, short="method")


def _without_metadata(table: Mapping[str, Any], method: str, file: str) -> dict[str, Any]:
    """A config table without what is about it: `[preset]`, `[written]`, and `[method] name`, which must be this
    method's.
    """
    _about(table, file)
    table = {key: value for key, value in table.items() if key not in ("preset", "written")}
    section = table.get("method")
    if isinstance(section, dict) and "name" in section:
        if section["name"] != method:
            raise UserError(f'{file}: [method] name = "{section["name"]}": this is no config for {method}')
        table["method"] = {key: value for key, value in section.items() if key != "name"}
    return table


def _about(table: Mapping[str, Any], file: str) -> dict[str, Any]:
    """What a run's config says of itself. Raises UserError for one of a newer format."""
    about = table.get("written")
    if not isinstance(about, dict):
        return {}
    if isinstance(about.get("format"), int) and about["format"] > FORMAT:
        by = f"format {about['format']}, written by dfkd-fast {about.get('program')}"
        raise UserError(f"{file}: {by}; this program reads up to {FORMAT}: use that one")
    return about


def _renamed(settings: Sequence[Setting]) -> list[Setting]:
    """Settings by the names that the config knows. `--text file` says no more than that a file is named beside it."""
    found = [_named(setting, ALIASES[setting.flag]) if setting.flag in ALIASES else setting for setting in settings]
    files = [setting for setting in found if setting.flag == "--text" and setting.value.strip('"') == "file"]
    named = [setting for setting in found if setting.flag == "--text" and setting not in files]
    return [setting for setting in found if not (named and setting in files)]


def _named(setting: Setting, flag: str) -> Setting:
    head, *values = setting.arguments
    return replace(setting, flag=flag, arguments=(flag + head[len(setting.flag) :], *values))
