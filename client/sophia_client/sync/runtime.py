"""What blocking code does in another way than asyncio."""

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")

_BATCH_BYTES = 1024 * 1024


def pause(seconds: float) -> None:
    """Wait."""
    time.sleep(seconds)


def in_thread(function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """The result of a function that works with files."""
    return function(*args, **kwargs)


def chunks_of(path: Path) -> Iterator[bytes]:
    """The content of a file."""
    with path.open("rb") as file:
        while content := file.read(_BATCH_BYTES):
            yield content
