"""Suppresses warnings of libraries."""

import contextlib
import logging
import warnings
from collections.abc import Iterator
from typing import Final

from serve_app.weights.layout import LYRIC_HEADS

_CONFIGURATION: Final = logging.getLogger("diffusers.configuration_utils")


@contextlib.contextmanager
def quiet_libraries() -> Iterator[None]:
    """Suppresses what libraries say about their own code when they build a model: FutureWarning and DeprecationWarning.

    Also diffusers' warning that LYRIC_HEADS in a config.json will be ignored: diffusers keeps the entry, and Sophia reads it.
    """
    _CONFIGURATION.addFilter(_is_wanted)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", category=FutureWarning)
            warnings.filterwarnings("ignore", category=DeprecationWarning)
            yield
    finally:
        _CONFIGURATION.removeFilter(_is_wanted)


def _is_wanted(record: logging.LogRecord) -> bool:
    return LYRIC_HEADS not in record.getMessage()
