"""The order in which planners serve owners: start-time fair queueing by seconds of audio, as for the songs (shares.py).

Each claim moves the owner's turn on by the length of what is planned. An owner who had nothing to plan starts at the clock, the
largest turn ever served. Unlike a song's, the turn of a plan that is given up is not refunded: its planner has worked on it.
"""

from typing import Any, Final

import sqlalchemy as sa

from serve_app.store.statements import upsert
from serve_app.store.tables import planning_turns, plans

_WAITING: Final = plans.c.state == sa.literal("waiting", literal_execute=True)


def begin_turn(connection: sa.Connection, model: str, owner: str, rank: Any) -> None:
    """Let an owner who has nothing to plan start at the clock. Call it before a plan of the owner begins to wait."""
    theirs = (plans.c.model == model, plans.c.owner == owner, plans.c.rank == rank)
    if connection.execute(sa.select(plans.c.id).where(_WAITING, *theirs).limit(1)).first() is not None:
        return
    clock = _clock(model, rank)
    later = sa.case((clock > planning_turns.c.turn, clock), else_=planning_turns.c.turn)
    key = {"model": model, "owner": owner, "rank": rank}
    upsert(connection, planning_turns, key, new={"turn": clock, "served": 0.0}, existing={"turn": later})


def owners_in_turn(connection: sa.Connection, model: str, most: int) -> list[tuple[int, str]]:
    """(rank, owner) of those who have something to plan, in the order in which they are served. At most `most`."""
    waiting = sa.select(plans.c.rank, plans.c.owner).where(plans.c.model == model, _WAITING).distinct().subquery()
    theirs = sa.and_(
        planning_turns.c.model == model,
        planning_turns.c.owner == waiting.c.owner,
        planning_turns.c.rank == waiting.c.rank,
    )
    turn = sa.func.coalesce(planning_turns.c.turn, 0.0)
    query = sa.select(waiting.c.rank, waiting.c.owner).select_from(waiting.outerjoin(planning_turns, theirs))
    ordered = query.order_by(waiting.c.rank.desc(), turn, waiting.c.owner).limit(most)
    return [(row.rank, row.owner) for row in connection.execute(ordered)]


def charge_turn(connection: sa.Connection, model: str, owner: str, rank: int, audio_s: float) -> None:
    """Move an owner's turn on, in the transaction that claims a plan of `audio_s` seconds."""
    key = {"model": model, "owner": owner, "rank": rank}
    turn = planning_turns.c.turn
    served = sa.case((turn > planning_turns.c.served, turn), else_=planning_turns.c.served)
    upsert(
        connection,
        planning_turns,
        key,
        new={"turn": audio_s, "served": 0.0},
        existing={"turn": turn + audio_s, "served": served},
    )


def _clock(model: str, rank: Any) -> sa.ColumnElement[float]:
    others = planning_turns.alias("others")
    largest = sa.select(sa.func.max(others.c.served)).where(others.c.model == model, others.c.rank == rank)
    return sa.func.coalesce(largest.scalar_subquery(), 0.0)
