"""The README's table of settings, made from config.py. `python -m tests.support.settings_table` writes it."""

import re

from serve_app.config import setting_rows
from tests.support.paths import ROOT

README = ROOT / "README.md"
_PLACE = re.compile(r"(<!-- settings: .*? -->\n).*?(<!-- end of settings -->)", re.DOTALL)


def table() -> str:
    """The rows as Markdown."""
    rows = [
        f"| `{name}` | {f'`{default}`' if default else ''} | {meaning} |" for name, default, meaning in setting_rows()
    ]
    return "\n".join(["| setting | default | what it is |", "|---|---|---|", *rows]) + "\n"


def with_table(text: str) -> str:
    """The README with the table in its place."""
    return _PLACE.sub(lambda found: found[1] + table() + found[2], text)


if __name__ == "__main__":
    README.write_text(with_table(README.read_text()))
