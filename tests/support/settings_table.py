"""Writes docs/SETTINGS.md from config.py: `python -m tests.support.settings_table`."""

from serve_app.config import setting_rows
from tests.support.paths import ROOT

FILE = ROOT / "docs" / "SETTINGS.md"
_HEAD = """# Settings

All settings stand under `args:` in `serve_config.yaml`. They are checked strictly: an unknown name or a value of the wrong type is
refused. An environment variable overrides the file: `SOPHIA_DATA_DIR` sets `data_dir`, `SOPHIA_API__REPLICAS` sets `api.replicas`.
Secrets come from the environment, or from files in the folder that `SOPHIA_SECRETS_DIR` names.

`python -m tests.support.settings_table` writes this page from `serve_app/config.py`.

"""


def page() -> str:
    """The whole page as Markdown."""
    rows = [
        f"| `{name}` | {f'`{default}`' if default else ''} | {meaning} |" for name, default, meaning in setting_rows()
    ]
    return _HEAD + "\n".join(["| setting | default | meaning |", "|---|---|---|", *rows]) + "\n"


if __name__ == "__main__":
    FILE.write_text(page())
