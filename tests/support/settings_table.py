"""Writes docs/SETTINGS.md from serve_app/config/: `python -m tests.support.settings_table`."""

from collections.abc import Iterator
from typing import Any, Final

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from serve_app.config import AdapterArgs, AppArgs, ModelArgs
from tests.support.paths import ROOT

FILE = ROOT / "docs" / "SETTINGS.md"
_HEAD = """# Settings

All settings are under `args:` in `serve_config.yaml`. They are checked strictly: an unknown name or a value of the wrong type is
refused. An environment variable overrides the file: `SOPHIA_DATA_DIR` sets `data_dir`, `SOPHIA_API__REPLICAS` sets `api.replicas`.
Secrets come from the environment, or from files in the folder that `SOPHIA_SECRETS_DIR` names.

`python -m tests.support.settings_table` writes this page from `serve_app/config/`.

"""

_NAMED: Final[dict[str, type[BaseModel]]] = {"models": ModelArgs, "adapters": AdapterArgs}
"""Settings that have sections by names which the operator chooses."""


def page() -> str:
    """The whole page as Markdown."""
    rows = [_row(name, field) for name, field in _settings(AppArgs)]
    return _HEAD + "\n".join(["| setting | default | meaning |", "|---|---|---|", *rows]) + "\n"


def _settings(section: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, FieldInfo]]:
    """Full name and field of every setting in a section and the sections inside it."""
    for name, field in section.model_fields.items():
        kind: Any = field.annotation
        if name in _NAMED:
            yield from _settings(_NAMED[name], f"{prefix}{name}.NAME.")
        elif isinstance(kind, type) and issubclass(kind, BaseModel):
            yield from _settings(kind, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", field


def _row(name: str, field: FieldInfo) -> str:
    default = None if field.is_required() else field.get_default(call_default_factory=True, validated_data={})
    shown = "~/.sophia" if name == "data_dir" else default
    return f"| `{name}` | {'' if shown in (None, {}) else f'`{shown}`'} | {field.description} |"


if __name__ == "__main__":
    FILE.write_text(page())
