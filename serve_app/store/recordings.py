"""Which recordings voices and the queued and running jobs name, so that neither the janitor nor a client deletes them."""

from typing import Any, Final

import sqlalchemy as sa

from serve_app.music import AUDIO_FIELDS
from serve_app.store.tables import jobs, voices

_INPUT: Final = "input:"
_SONG: Final = "job:"
_ID_LENGTH: Final = 36
"""Characters of a job's id."""


def needed_inputs(owner: str | None = None) -> sa.CompoundSelect[Any]:
    """Selects owner and SHA-256 of the inputs that voices, and queued and running jobs, name: of one owner, or of all."""
    of_voices = sa.select(voices.c.owner, voices.c.sha256).where(*_of(owner, voices.c.owner))
    return sa.union(of_voices, *_named(_INPUT, lambda name: sa.func.substr(name, len(_INPUT) + 1), owner))


def jobs_with_needed_songs(owner: str | None = None) -> sa.CompoundSelect[Any]:
    """Selects owner and id of the jobs whose songs queued and running jobs of the same owner name: of one owner, or of all."""
    return sa.union(*_named(_SONG, lambda name: sa.func.substr(name, len(_SONG) + 1, _ID_LENGTH), owner))


def _of(owner: str | None, column: sa.ColumnElement[str]) -> list[sa.ColumnElement[bool]]:
    return [] if owner is None else [column == owner]


def _named(prefix: str, rest: Any, owner: str | None) -> list[sa.Select[Any]]:
    """For each field, the recordings whose names begin with `prefix`, of one owner or of all.

    These queries refer to no other one, so a database runs them once for a statement. As a condition on each row that might be
    deleted, they took rows times jobs: with 10,000 jobs in the queue, 1.0 s for 200 ended jobs.
    """
    live = jobs.alias("live")
    names = [live.c.request[field].as_string() for field in AUDIO_FIELDS]
    return [
        sa.select(live.c.owner, rest(name)).where(
            live.c.finished_at.is_(None), name.startswith(prefix), *_of(owner, live.c.owner)
        )
        for name in names
    ]
