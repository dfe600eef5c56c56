"""How the configuration is read, from `args:` and from SOPHIA_ variables, and how it is refused.

The command line and Ray Serve read it here. An error names settings and variables and never repeats a value: a value may be a
password in the wrong place, and Serve writes errors into its status and into log files.
"""

import difflib
import json
import os
import re
import typing
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import yaml
from pydantic import BaseModel, ValidationError
from pydantic_settings import SettingsError

from serve_app.config import AppArgs
from serve_app.errors import ConfigurationError

PREFIX: Final = "SOPHIA_"
_NESTED: Final = "__"

NOT_SETTINGS: Final = {
    "SOPHIA_COMMIT": "cluster/Dockerfile: the commit in the image, shown by health",
    "SOPHIA_DRAIN_S": "cluster/drain.sh: seconds that a drain waits",
    "SOPHIA_HEAD_IP": "systemd units: the head's address",
    "SOPHIA_IDLE_MINUTES": "cluster/skypilot.yaml: minutes without a job until it ends",
    "SOPHIA_IMAGE": "cluster/compose.yaml: the application's image",
    "SOPHIA_KUBERAY_CRDS": "tests: the folder with KubeRay's CRDs",
    "SOPHIA_MAX_HOURS": "cluster/skypilot.yaml: hours until it ends in any case",
    "SOPHIA_NODE_IP": "systemd units: this machine's address",
    "SOPHIA_OBJECT_STORE_BYTES": "systemd units: the size of Ray's object store",
    "SOPHIA_RAY_ARGS": "systemd units: further words for `ray start`",
    "SOPHIA_SECRETS_DIR": "the folder of secret files, needed before any setting is read",
    "SOPHIA_WRITE_DOCS": "tests: write docs/FAILURES.md",
}
"""Variables that begin like a setting and are none, and who reads each. SOPHIA_TEST_… are the tests' own, too."""

_TESTS: Final = "SOPHIA_TEST_"

_OF_A_SERVICE: Final = re.compile(
    PREFIX + r"(.+_)?(SERVICE_HOST|SERVICE_PORT(_[A-Z0-9_]+)?|PORT(_\d+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?)?)"
)
"""What Kubernetes puts into a pod for each Service whose name begins with `sophia`."""

_LONGEST_LIST: Final = 20
"""So many faults are told at most; a file of another program would have hundreds."""


def load_args(config: Path | None) -> AppArgs:
    """The configuration of the Sophia application in a Serve config file; without a file, defaults and environment.

    Raises ConfigurationError.
    """
    if config is None:
        return read_args({}, "environment")
    return read_args(_application(config).get("args") or {}, str(config))


def read_args(given: Mapping[str, Any], place: str = "args") -> AppArgs:
    """The configuration that `given` and the environment make. `place` says in errors where `given` stands.

    Raises ConfigurationError, whose text and causes hold no value.
    """
    wrong = list(_wrong_variables(os.environ)) + list(_wrong_secret_files(os.environ))
    if not wrong:
        try:
            return AppArgs.model_validate(dict(given))
        except ValidationError as error:
            wrong = [_in_words(fault["loc"], fault["msg"], place) for fault in error.errors(include_input=False)]
        except SettingsError:
            # Its cause holds the value. What it can be was looked for above, as far as it is known.
            wrong = ["a SOPHIA_ variable or a secret file cannot be read: sections, tables and lists must be JSON"]
    # Outside of the `except`: the error that was caught has the values, and would go along as this one's context.
    more = f"; and {len(wrong) - _LONGEST_LIST} more" if len(wrong) > _LONGEST_LIST else ""
    raise ConfigurationError("; ".join(wrong[:_LONGEST_LIST]) + more)


def _application(config: Path) -> Mapping[str, Any]:
    """The part of a Serve config that describes Sophia. Raises ConfigurationError, without any of the file's text."""
    not_one = f"{config} is not a Serve config with a Sophia application"
    try:
        document = yaml.safe_load(config.read_text())
    except OSError as error:
        raise ConfigurationError(f"{not_one}: {error}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        mark = getattr(error, "problem_mark", None)
        reason = f"line {mark.line + 1} is not YAML" if mark else "it is not YAML in UTF-8"
    else:
        applications = document.get("applications") if isinstance(document, dict) else None
        for one in applications if isinstance(applications, list) else []:
            if isinstance(one, dict) and str(one.get("import_path")).startswith("serve_app.app:"):
                return one
        reason = "no entry of `applications` has an import_path in serve_app.app"
    raise ConfigurationError(f"{not_one}: {reason}")


def _in_words(place_of_fault: tuple[int | str, ...], message: str, place: str) -> str:
    """One fault that pydantic found, with the variable that set the value, if one did."""
    parts = [str(part) for part in place_of_fault]
    for length in range(len(parts), 0, -1):
        variable = PREFIX + _NESTED.join(parts[:length]).upper()
        if variable in {name.upper() for name in os.environ}:
            return f"{variable}: {'.'.join(parts)}: {message}"
    return f"{place}: {'.'.join(parts)}: {message}" if parts else f"{place}: {message}"


# --- Variables and secret files --------------------------------------------------------------------------------------


def _wrong_variables(environment: Mapping[str, str]) -> Iterator[str]:
    """A sentence for each variable that looks like a setting and is none, or is not in the setting's shape."""
    in_kubernetes = "KUBERNETES_SERVICE_HOST" in environment
    for given, value in sorted(environment.items()):
        name = given.upper()
        if not name.startswith(PREFIX) or name in NOT_SETTINGS or name.startswith(_TESTS):
            continue
        kind = _kind(name)
        if kind is not None:
            if _is_structured(kind) and not _is_json_of(kind, value):
                yield f"{given} {_shape(name, kind)}"
        elif not (in_kubernetes and _OF_A_SERVICE.fullmatch(name)):
            yield f"{given} is no setting{_instead(name)}"


def _wrong_secret_files(environment: Mapping[str, str]) -> Iterator[str]:
    """A sentence for each file in SOPHIA_SECRETS_DIR that is named like a setting and sets none, or when it is no folder."""
    folder = environment.get("SOPHIA_SECRETS_DIR")
    if folder is None:
        return
    try:
        files = sorted(path.name for path in Path(folder).expanduser().iterdir())
    except OSError as error:
        yield f"SOPHIA_SECRETS_DIR must name a folder that can be read: {error.strerror}"
        return
    for file in files:
        name = file.upper()
        if not name.startswith(PREFIX):
            continue
        if _kind(name) is None:
            yield f"{file} in SOPHIA_SECRETS_DIR is no setting{_instead(name)}"
        elif _NESTED in name:
            yield f"{file} in SOPHIA_SECRETS_DIR is not read: a file sets a whole section, in JSON"


def _kind(variable: str) -> Any:
    """The type of the setting that a variable sets; None when there is no such setting."""
    kind: Any = AppArgs
    for part in variable.removeprefix(PREFIX).split(_NESTED):
        kind = _inside(kind, part)
        if kind is None:
            return None
    return kind


def _inside(kind: Any, part: str) -> Any:
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        field = kind.model_fields.get(part.lower())
        return None if field is None else field.annotation
    if typing.get_origin(kind) is dict and part:
        return typing.get_args(kind)[1]
    return None


def _is_structured(kind: Any) -> bool:
    """Whether a variable's text is read as JSON."""
    is_section = isinstance(kind, type) and issubclass(kind, BaseModel)
    return is_section or typing.get_origin(kind) in (dict, list)


def _is_json_of(kind: Any, value: str) -> bool:
    try:
        found = json.loads(value)
    except ValueError:
        return False
    return isinstance(found, list if typing.get_origin(kind) is list else dict)


def _shape(variable: str, kind: Any) -> str:
    if typing.get_origin(kind) is list:
        return "must be a list in JSON, such as [5, 30]"
    if typing.get_origin(kind) is dict:
        return 'must be an object in JSON, such as {"name": …}'
    first = next(iter(kind.model_fields))
    return (
        f'is a section: set {variable}{_NESTED}{first.upper()} and so on, or give an object in JSON, {{"{first}": …}}'
    )


def _instead(variable: str) -> str:
    """The setting that was meant, as the end of a sentence."""
    names = [name.removeprefix(PREFIX) for name in _known(variable.split(_NESTED)[1:2])]
    near = difflib.get_close_matches(variable.removeprefix(PREFIX), names, n=1, cutoff=0.7)
    return (
        f": did you mean {PREFIX}{near[0]}?" if near else ": docs/SETTINGS.md lists all settings; remove or rename it"
    )


def _known(model_names: Iterable[str]) -> Iterator[str]:
    """Every variable that there is, for models of these names."""
    yield from _variables(AppArgs, PREFIX, list(model_names))
    yield from NOT_SETTINGS


def _variables(section: type[BaseModel], prefix: str, model_names: list[str]) -> Iterator[str]:
    for name, field in section.model_fields.items():
        variable = prefix + name.upper()
        yield variable
        kind: Any = field.annotation
        inside = [variable]
        if typing.get_origin(kind) is dict:
            kind = typing.get_args(kind)[1]
            inside = [f"{variable}{_NESTED}{model}" for model in model_names]
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            for one in inside:
                yield from _variables(kind, one + _NESTED, model_names)
