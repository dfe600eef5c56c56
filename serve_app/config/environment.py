"""Checks `SOPHIA_…` environment variables and secret files against the settings, before pydantic reads them.

pydantic-settings ignores a variable whose name it does not know, so a misspelt name would leave the default in place without
any notice. The texts made here contain names and never values: a value may be a password.
"""

import difflib
import json
import re
import typing
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from pydantic import BaseModel

from serve_app.config.app import AppArgs

PREFIX: Final = "SOPHIA_"
NESTED: Final = "__"
"""Separates a section's name from that of a setting in it."""

LAUNCHER: Final = "SOPHIA_LAUNCHER"
"""The variable with the name of the Unix socket on which `make serve` tells API processes that it is about to stop."""

NOT_SETTINGS: Final = {
    "SOPHIA_COMMIT": "cluster/Dockerfile: the commit of the image, which health shows",
    "SOPHIA_DRAIN_S": "cluster/drain.sh: the most seconds that a drain may take",
    "SOPHIA_HEAD_IP": "systemd units: the head's address",
    "SOPHIA_IDLE_MINUTES": "cluster/skypilot.yaml: minutes without a job after which the run ends",
    "SOPHIA_IMAGE": "cluster/compose.yaml: the application's image",
    "SOPHIA_KEY": "sophia-client: the API key",
    "SOPHIA_KUBERAY_CRDS": "tests: the folder with KubeRay's CRDs",
    LAUNCHER: "API processes: the socket on which `make serve` tells them that it is about to stop",
    "SOPHIA_MAX_HOURS": "cluster/skypilot.yaml: hours after which the run ends in any case",
    "SOPHIA_NODE_IP": "systemd units: this machine's address",
    "SOPHIA_OBJECT_STORE_BYTES": "systemd units: the size of Ray's object store",
    "SOPHIA_RAY_ARGS": "systemd units: additional arguments for `ray start`",
    "SOPHIA_SECRETS_DIR": "the folder of secret files, which must be known before any setting is read",
    "SOPHIA_URL": "sophia-client: the service's address",
    "SOPHIA_WRITE_DOCS": "tests: write docs/FAILURES.md",
}
"""Variables that have the prefix but are no settings, and what reads each. Variables that begin with SOPHIA_TEST_ are no settings
either."""

_TEST_PREFIX: Final = "SOPHIA_TEST_"

_KUBERNETES_SERVICE: Final = re.compile(
    PREFIX + r"(.+_)?(SERVICE_HOST|SERVICE_PORT(_[A-Z0-9_]+)?|PORT(_\d+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?)?)"
)
"""Variables that Kubernetes sets in every pod for each Service whose name begins with `sophia`."""


def variable_errors(environment: Mapping[str, str]) -> Iterator[str]:
    """A text for each variable that has the prefix and is not a setting, or whose value has the wrong JSON type."""
    in_kubernetes = "KUBERNETES_SERVICE_HOST" in environment
    for given, value in sorted(environment.items()):
        name = given.upper()
        if not name.startswith(PREFIX) or name in NOT_SETTINGS or name.startswith(_TEST_PREFIX):
            continue
        kind = _type_of(name)
        if kind is not None:
            if _is_structured(kind) and not _is_json_of(kind, value):
                yield f"{given} {_required_shape(name, kind)}"
        elif not (in_kubernetes and _KUBERNETES_SERVICE.fullmatch(name)):
            yield f"{given} is not a setting{_suggestion(name)}"


def secret_file_errors(environment: Mapping[str, str]) -> Iterator[str]:
    """A text for each file in SOPHIA_SECRETS_DIR that has the prefix and sets nothing, or one if the folder cannot be read."""
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
        if _type_of(name) is None:
            yield f"{file} in SOPHIA_SECRETS_DIR is not a setting{_suggestion(name)}"
        elif NESTED in name:
            yield f"{file} in SOPHIA_SECRETS_DIR is ignored: a secret file must set a whole section, in JSON"


def _type_of(variable: str) -> Any:
    """The type of the setting or section that a variable sets; None if there is no such setting."""
    kind: Any = AppArgs
    for part in variable.removeprefix(PREFIX).split(NESTED):
        kind = type_inside(kind, part)
        if kind is None:
            return None
    return kind


def type_inside(kind: Any, part: str) -> Any:
    """The type of a field of a section, or of the values of a table; None if there is none."""
    if is_section(kind):
        field = kind.model_fields.get(part.lower())
        return None if field is None else field.annotation
    if typing.get_origin(kind) is dict and part:
        return typing.get_args(kind)[1]
    return None


def is_section(kind: Any) -> bool:
    """Whether a type is that of a section of settings."""
    return isinstance(kind, type) and issubclass(kind, BaseModel)


def _is_structured(kind: Any) -> bool:
    """Whether pydantic-settings reads a variable of this type as JSON."""
    return is_section(kind) or typing.get_origin(kind) in (dict, list)


def _is_json_of(kind: Any, value: str) -> bool:
    """Whether the value is a JSON list (for a list) or a JSON object (for a section or table)."""
    try:
        found = json.loads(value)
    except ValueError:
        return False
    return isinstance(found, list if typing.get_origin(kind) is list else dict)


def _required_shape(variable: str, kind: Any) -> str:
    """What the value of a structured variable must look like, as the end of a sentence."""
    if typing.get_origin(kind) is list:
        return "must be a list in JSON, such as [5, 30]"
    if typing.get_origin(kind) is dict:
        return 'must be an object in JSON, such as {"name": …}'
    first = next(iter(kind.model_fields))
    return f'is a section: set {variable}{NESTED}{first.upper()} and so on, or give an object in JSON, {{"{first}": …}}'


def _suggestion(variable: str) -> str:
    """The setting with the most similar name, as the end of a sentence."""
    names = [name.removeprefix(PREFIX) for name in _known_variables(variable.split(NESTED)[1:2])]
    similar = difflib.get_close_matches(variable.removeprefix(PREFIX), names, n=1, cutoff=0.7)
    if similar:
        return f": did you mean {PREFIX}{similar[0]}?"
    return ": remove or rename it; docs/SETTINGS.md lists all settings"


def _known_variables(model_names: Iterable[str]) -> Iterator[str]:
    """Every variable that Sophia knows, with the settings of models of these names."""
    yield from _setting_variables(AppArgs, PREFIX, list(model_names))
    yield from NOT_SETTINGS


def _setting_variables(section: type[BaseModel], prefix: str, model_names: list[str]) -> Iterator[str]:
    """The variables of a section's settings and of the sections inside it."""
    for name, field in section.model_fields.items():
        variable = prefix + name.upper()
        yield variable
        kind: Any = field.annotation
        inner = [variable]
        if typing.get_origin(kind) is dict:
            kind = typing.get_args(kind)[1]
            inner = [f"{variable}{NESTED}{model}" for model in model_names]
        if is_section(kind):
            for one in inner:
                yield from _setting_variables(kind, one + NESTED, model_names)
