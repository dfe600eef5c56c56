"""Reads the configuration from `args:` in a Serve config and from `SOPHIA_…` variables, and reports every error in it.

The command line and Ray Serve both read it here. Errors name settings and variables and never repeat a value: a misplaced value
may be a password, and Serve writes errors into its status and into log files.
"""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import yaml
from pydantic import ValidationError
from pydantic_settings import SettingsError

from serve_app.config import AppArgs
from serve_app.config.environment import NESTED, PREFIX, secret_file_errors, variable_errors
from serve_app.errors import ConfigurationError

_IMPORT_PATH: Final = "serve_app.app:"
"""How the `import_path` of a Sophia application begins."""

_MOST_ERRORS: Final = 20
"""The most errors that one message lists. A file of another program would have hundreds."""


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
            problems = [_problem(fault["loc"], fault["msg"], place) for fault in error.errors(include_input=False)]
        except SettingsError:
            # The cause of this error contains the value. The known reasons for it were checked above.
            problems = ["a SOPHIA_ variable or a secret file cannot be read: sections, tables and lists must be JSON"]
    # Raised outside of the `except`: the caught error contains the values and would become the context of this one.
    raise ConfigurationError(_joined(problems))


def _joined(problems: list[str]) -> str:
    more = f"; and {len(problems) - _MOST_ERRORS} more" if len(problems) > _MOST_ERRORS else ""
    return "; ".join(problems[:_MOST_ERRORS]) + more


def _problem(location: tuple[int | str, ...], message: str, place: str) -> str:
    """One error that pydantic found: the variable that set the value or else `place`, then the setting and the message."""
    parts = [str(part) for part in location]
    variables = {name.upper() for name in os.environ}
    for length in range(len(parts), 0, -1):
        variable = PREFIX + NESTED.join(parts[:length]).upper()
        if variable in variables:
            return f"{variable}: {'.'.join(parts)}: {message}"
    return f"{place}: {'.'.join(parts)}: {message}" if parts else f"{place}: {message}"


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
        reason = str(error)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        mark = getattr(error, "problem_mark", None)
        reason = f"line {mark.line + 1} is not YAML" if mark else "it is not YAML in UTF-8"
    if reason is not None:  # raised outside of the `except`: the context of the error would contain the file's text
        raise _not_a_serve_config(config, reason)
    applications = document.get("applications") if isinstance(document, dict) else None
    return applications if isinstance(applications, list) else []


def _not_a_serve_config(config: Path, reason: str) -> ConfigurationError:
    return ConfigurationError(f"{config} is not a Serve config with a Sophia application: {reason}")
