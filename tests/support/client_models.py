"""What the client package repeats of the service. `python -m tests.support.client_models` writes it.

Its answers are those of serve_app/api/views, and the fields of a song those of MusicRequest.
"""

import subprocess
import sys
import textwrap
import types
import typing
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any, Final

from pydantic import BaseModel

from serve_app.api.views.codes import JobCodes
from serve_app.api.views.health import Health
from serve_app.api.views.inputs import InputList
from serve_app.api.views.jobs import JobList, JobView, SignedLinks, UsageView
from serve_app.api.views.lyrics import LyricsView
from serve_app.api.views.models import ModelList
from serve_app.api.views.plans import PlanView
from serve_app.api.views.voices import VoiceList
from serve_app.music import AUDIO_FIELDS, MusicRequest, vocabulary
from serve_app.music.adapter_fields import LoraUse
from serve_app.music.plan_fields import GivenPlan
from tests.support.paths import ROOT

PACKAGE: Final = ROOT / "client" / "sophia_client"
ANSWERS: Final = PACKAGE / "answers.py"
SONG_FIELDS: Final = PACKAGE / "song_fields.py"

_VIEWS: Final = (
    JobList,
    SignedLinks,
    InputList,
    VoiceList,
    PlanView,
    JobCodes,
    LyricsView,
    ModelList,
    UsageView,
    Health,
)
_BASES: Final[dict[type[BaseModel], str]] = {JobView: "JobAnswer", PlanView: "PlanAnswer"}
_WRITTEN_BY: Final = "`python -m tests.support.client_models` writes this file from the service's own classes."
_ALIASES: Final = {
    value: name for name, value in vars(vocabulary).items() if typing.get_origin(value) is typing.Literal
}
_MORE_VALUES: Final = {
    "duration": 'Literal["auto"]',
    "audio_codes": "str",
    "plan": "str",
    "thinking": "bool",
    **dict.fromkeys(AUDIO_FIELDS, "Path"),
}
"""What a request may have in a field besides values of the field's own type. A path is uploaded first."""

_WIDTH: Final = 115


def documents() -> dict[Path, str]:
    """The text of each file."""
    return {ANSWERS: formatted(_answers()), SONG_FIELDS: formatted(_song_fields())}


def _answers() -> str:
    header = f'''"""What the service answers with. {_WRITTEN_BY}

Words from lists that may grow, such as states and formats, are `str`, so that a newer service's are read, too.
"""

from datetime import datetime
from typing import Any

from sophia_client.answer import Answer, JobAnswer, PlanAnswer
'''
    return "\n\n".join([header, *(_answer_class(view) for view in _with_parts(_VIEWS))])


def _with_parts(views: tuple[type[BaseModel], ...]) -> Iterator[type[BaseModel]]:
    """The classes and those of their fields, each once, a field's class before the class that uses it."""
    found: dict[type[BaseModel], None] = {}

    def add(view: type[BaseModel]) -> None:
        for field in view.model_fields.values():
            for part in _models_in(field.annotation):
                add(part)
        found[view] = None

    for view in views:
        add(view)
    return iter(found)


def _models_in(kind: Any) -> Iterator[type[BaseModel]]:
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        if kind is not MusicRequest:
            yield kind
        return
    for part in typing.get_args(kind):
        yield from _models_in(part)


def _answer_class(view: type[BaseModel]) -> str:
    lines = [f"class {_name(view)}({_BASES.get(view, 'Answer')}):", _docstring(view.__doc__ or "")]
    for name, field in view.model_fields.items():
        kind = _type(field.annotation, literals=False)
        default = " = None" if kind.endswith("| None") else ""
        lines += [f"    {name}: {kind}{default}", _docstring(field.description or "")]
    return "\n".join(lines) + "\n"


def _song_fields() -> str:
    header = f'''"""The fields of a song. {_WRITTEN_BY}"""

from pathlib import Path
from typing import Literal, Required, TypedDict
'''
    classes = [
        "class LoraUse(TypedDict, total=False):",
        _docstring(LoraUse.__doc__ or ""),
        *_typed_fields(LoraUse, required=True),
        "\n\nclass GivenPlan(TypedDict, total=False):",
        _docstring(GivenPlan.__doc__ or ""),
        *_typed_fields(GivenPlan, required=False),
        "\n\nclass SongFields(TypedDict, total=False):",
        _docstring("What a song may have besides its prompt. The service checks the values and fills in the defaults."),
        *_typed_fields(MusicRequest, required=False),
    ]
    aliases = [f"{name} = {_literal(value)}" for value, name in _ALIASES.items() if name in " ".join(classes)]
    return "\n".join([header, *aliases, "\n", *classes])


def _typed_fields(model: type[BaseModel], *, required: bool) -> Iterator[str]:
    """The fields as a TypedDict has them, without those that are required unless `required`."""
    for name, field in model.model_fields.items():
        if field.is_required() and not required:
            continue
        kind = _with_more_values(name, _type(field.annotation, literals=True))
        yield f"    {name}: {f'Required[{kind}]' if field.is_required() else kind}"
        yield _docstring(field.description or "")


def _with_more_values(name: str, kind: str) -> str:
    more = _MORE_VALUES.get(name)
    if more is None:
        return kind
    return f"{kind.removesuffix(' | None')} | {more}{' | None' if kind.endswith('| None') else ''}"


def _type(kind: Any, *, literals: bool) -> str:
    """A type as Python writes it, without pydantic's constraints. `literals`: whether words from a list are listed."""
    origin = typing.get_origin(kind)
    parts = typing.get_args(kind)
    if origin is typing.Annotated:
        return _type(parts[0], literals=literals)
    if origin is typing.Literal:
        return _literal_type(kind, literals)
    if origin in (typing.Union, types.UnionType):
        return " | ".join(_type(part, literals=literals) for part in parts)
    if origin is not None:
        return f"{origin.__name__}[{', '.join(_type(part, literals=literals) for part in parts)}]"
    if kind is MusicRequest:
        return "dict[str, Any]"
    return "None" if kind is types.NoneType else _name(kind)


def _literal_type(kind: Any, literals: bool) -> str:
    if not literals:
        return type(typing.get_args(kind)[0]).__name__
    return _ALIASES.get(kind) or _literal(kind)


def _literal(kind: Any) -> str:
    return f"Literal[{', '.join(map(repr, typing.get_args(kind)))}]"


def _name(kind: type) -> str:
    return "datetime" if kind is datetime else kind.__name__.removesuffix("View")


def _docstring(text: str) -> str:
    lines = textwrap.wrap(" ".join(text.split()), _WIDTH) or [""]
    if len(lines) == 1:
        return f'    """{lines[0]}"""'
    return textwrap.indent("\n".join([f'"""{lines[0]}', *lines[1:], '"""']), "    ")


def formatted(code: str) -> str:
    """Code of the package as `make format` leaves it."""
    ruff = Path(sys.executable).parent / "ruff"
    named = ["--stdin-filename", str(PACKAGE / "x.py"), "-"]
    for action in (["check", "--fix-only", "--select", "I"], ["format"]):
        code = subprocess.run(
            [ruff, *action, "--quiet", *named], input=code, capture_output=True, text=True, check=True
        ).stdout
    return code


if __name__ == "__main__":
    for path, text in documents().items():
        path.write_text(text)
