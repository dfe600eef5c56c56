"""Reads the configuration from `args:` in a Serve config and from `SOPHIA_…` variables, and reports every error in it.

The command line and Ray Serve both read it here. Errors name settings and variables and never repeat a value: a misplaced value
may be a password, and Serve writes errors into its status and into log files.
"""

import difflib
import os
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import yaml
from pydantic import ValidationError
from pydantic_settings import SettingsError

from serve_app.config import AppArgs
from serve_app.config.environment import (
    NESTED,
    PREFIX,
    is_section,
    secret_file_errors,
    type_inside,
    variable_errors,
)
from serve_app.errors import ConfigurationError
from serve_app.validation_texts import validation_text

_IMPORT_PATH: Final = "serve_app.app:"
"""How the `import_path` of a Sophia application begins."""

_MOST_ERRORS: Final = 20
"""The most errors that one message lists. A file of another program would have hundreds."""


_NAME: Final = "must be a name of letters from A to Z, digits, '.', '_' and '-', at most 64"
_PATTERNS: Final = {
    "adapters": f"{_NAME}, and begin with a letter or digit",
    "cluster_name": _NAME,
    "cors_origins": "must be a site such as https://app.example.com, without a path, or '*'",
}
"""By setting, what its regular expression asks for."""


def load_args(config: Path | None) -> AppArgs:
    """The configuration of the Sophia application in a Serve config file; without a file, defaults and environment.

    Raises ConfigurationError.
    """
    if config is None:
        return read_args({}, "environment")
    return read_args(_application(config).get("args") or {}, str(config))


def read_args(given: Mapping[str, Any], place: str = "args") -> AppArgs:
    """The configuration from `given` and the environment. Errors name `place` as the origin of `given`.

    Raises ConfigurationError, whose text and causes contain no value.
    """
    problems = [*variable_errors(os.environ), *secret_file_errors(os.environ)]
    if not problems:
        try:
            return AppArgs.model_validate(dict(given))
        except ValidationError as error:
            problems = _problems(error, place)
        except SettingsError:
            # The cause of this error contains the value. The known reasons for it were checked above.
            problems = ["a SOPHIA_ variable or a secret file cannot be read: sections, tables and lists must be JSON"]
    # Raised outside of the `except`: the caught error contains the values and would become the context of this one.
    raise ConfigurationError(_joined(problems))


def _joined(problems: list[str]) -> str:
    more = f"; and {len(problems) - _MOST_ERRORS} more" if len(problems) > _MOST_ERRORS else ""
    return "; ".join(problems[:_MOST_ERRORS]) + more


def _problems(error: ValidationError, place: str) -> list[str]:
    """One text for each setting that pydantic found wrong: what set the value, the setting, and the rule."""
    rules: dict[tuple[str, ...], list[str]] = {}
    for fault in error.errors(include_input=False):
        setting, kind = _setting_at([str(part) for part in fault["loc"]])
        rules.setdefault(setting, []).append(_rule(setting, kind, fault))
    return [_problem(setting, " or ".join(dict.fromkeys(texts)), place) for setting, texts in rules.items()]


def _setting_at(location: list[str]) -> tuple[tuple[str, ...], Any]:
    """The part of pydantic's location that names a setting, and the type of what contains it.

    Pydantic adds names of its own: of the types that a value may have, and `[key]` for the name of a table's entry.
    """
    kind: Any = AppArgs
    for i, part in enumerate(location):
        inner = typing.get_args(kind)[0] if typing.get_origin(kind) is list else type_inside(kind, part)
        if inner is None:
            is_unknown = is_section(kind) and part != "[key]"  # or else the part is one of pydantic's names
            return tuple(location[: i + is_unknown]), kind
        kind = inner
    return tuple(location), kind


def _rule(setting: tuple[str, ...], kind: Any, fault: Any) -> str:
    """What the value must be, or which setting a name that is none is likely to mean."""
    if fault["type"] == "extra_forbidden":
        return f"is not a setting{_similar(setting[-1], list(kind.model_fields))}"
    if fault["type"] == "string_pattern_mismatch":
        return next(text for name, text in _PATTERNS.items() if name in setting)
    return validation_text(fault)


def _similar(name: str, settings: list[str]) -> str:
    """The setting with the most similar name, or else all of them, as the end of a sentence."""
    similar = difflib.get_close_matches(name, settings, n=1)
    return f"; did you mean {similar[0]!r}?" if similar else f"; the settings here are {', '.join(settings)}"


def _problem(setting: tuple[str, ...], rule: str, place: str) -> str:
    """One wrong setting: the variable that set its value or else `place`, its name and the rule."""
    variables = {name.upper() for name in os.environ}
    for length in range(len(setting), 0, -1):
        variable = PREFIX + NESTED.join(setting[:length]).upper()
        if variable in variables:
            return f"{variable}: {'.'.join(setting)}: {rule}"
    return f"{place}: {'.'.join(setting)}: {rule}" if setting else f"{place}: {rule}"


def _application(config: Path) -> Mapping[str, Any]:
    """The entry of a Serve config that describes Sophia. Raises ConfigurationError, which quotes nothing from the file."""
    for one in _applications(config):
        if isinstance(one, dict) and str(one.get("import_path")).startswith(_IMPORT_PATH):
            return one
    raise _not_a_serve_config(config, "no entry of `applications` has an import_path in serve_app.app")


def _applications(config: Path) -> list[Any]:
    """The list `applications` of a Serve config, empty if there is none. Raises ConfigurationError."""
    document: Any = None
    reason = None
    try:
        document = yaml.safe_load(config.read_text())
    except OSError as error:
        raise ConfigurationError(f"{config} cannot be read: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        mark = getattr(error, "problem_mark", None)
        reason = f"line {mark.line + 1} is not YAML" if mark else "it is not YAML in UTF-8"
    if reason is not None:  # raised outside of the `except`: the context of the error would contain the file's text
        raise _not_a_serve_config(config, reason)
    applications = document.get("applications") if isinstance(document, dict) else None
    return applications if isinstance(applications, list) else []


def _not_a_serve_config(config: Path, reason: str) -> ConfigurationError:
    return ConfigurationError(f"{config} is not a Serve config with a Sophia application: {reason}")
