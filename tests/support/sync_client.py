"""The client that blocks, written from the one for asyncio. `python -m tests.support.sync_client` writes it."""

import re
from pathlib import Path
from typing import Final

from tests.support.client_models import PACKAGE, formatted

ASYNC: Final = PACKAGE / "aio"
SYNC: Final = PACKAGE / "sync"

_BY_HAND: Final = ("__init__.py", "runtime.py")
_HEADER: Final = "# `python -m tests.support.sync_client` writes this file from {path}.\n"
_REPLACED: Final = (
    (r"\bawait ", ""),
    (r"\basync (def|with|for)\b", r"\1"),
    (r"\bAsync(Client|Transport|Follower|Iterator)\b", r"\1"),
    (r"\bAsyncGenerator\[(\w+)\]", r"Generator[\1, None, None]"),
    (r"\bAsyncGenerator\b", "Generator"),
    (r"\basynccontextmanager\b", "contextmanager"),
    (r"\baclosing\b", "closing"),
    (r"\b__a(enter|exit)__", r"__\1__"),
    (r"\ba(close|read|iter_lines|iter_raw)\b", r"\1"),
    (r"\bsophia_client\.aio\b", "sophia_client.sync"),
    (r"\bfor asyncio\b", "that blocks"),
    (r"for (\w+) in ([\w.]+):\n +yield \1\n", r"yield from \2\n"),
)
"""Patterns, and what stands for them in blocking code."""


def documents() -> dict[Path, str]:
    """The text of each file of the blocking client."""
    sources = [path for path in sorted(ASYNC.glob("*.py")) if path.name not in _BY_HAND]
    return {SYNC / path.name: _sync(path) for path in sources}


def _sync(path: Path) -> str:
    code = path.read_text()
    for pattern, replacement in _REPLACED:
        code = re.sub(pattern, replacement, code)
    return formatted(_HEADER.format(path=path.relative_to(PACKAGE.parent)) + code)


if __name__ == "__main__":
    for path, text in documents().items():
        path.write_text(text)
