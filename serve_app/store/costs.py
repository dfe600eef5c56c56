"""The accounts: what device time went into, by worker, and what was played for whom, by API key. An hour a row.

They outlive workers and jobs: neither a worker that was ended nor a song that was deleted gives its cost back. What a killed worker
had not told yet, a few seconds, is not in them; nor is the time in which a node boots and none of our processes runs on it.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import sqlalchemy as sa

from serve_app.store.clock import this_hour
from serve_app.store.database import Database
from serve_app.store.statements import increment
from serve_app.store.tables import device_hours, owner_hours
from serve_app.store.workers import WorkerRow

_HOUR_S: Final = 3600.0
USES: Final = ("loading", "idle", "generating")
"""What device time goes into."""


@dataclass(frozen=True, slots=True)
class DeviceUse:
    """Device time by what it went into, in seconds, and its price in the currency of `price_per_hour`."""

    loading_s: float
    idle_s: float
    generating_s: float
    loading_cost: float
    idle_cost: float
    generating_cost: float

    @property
    def total_s(self) -> float:
        """All of it."""
        return self.loading_s + self.idle_s + self.generating_s

    @property
    def cost(self) -> float:
        """What all of it cost."""
        return self.loading_cost + self.idle_cost + self.generating_cost


@dataclass(frozen=True, slots=True)
class OwnerUse:
    """What was played for one API key on one model."""

    model: str
    owner: str
    songs: int
    """Finished songs; a job of four variations is four."""
    audio_s: float
    gpu_s: float
    """Device seconds of the attempts that gave songs."""
    wasted_s: float
    """Device seconds of attempts that gave none: failed, cancelled, taken away."""


@dataclass(frozen=True, slots=True)
class Account:
    """One model over some hours."""

    use: DeviceUse
    songs: int
    audio_s: float
    song_s: float
    """Device seconds that went into finished songs."""

    @property
    def per_song(self) -> float | None:
        """What a song cost, with its part of loading and idling; None before the first."""
        return self.use.cost / self.songs if self.songs else None

    @property
    def no_song_cost(self) -> float:
        """Generating that gave no song, or none yet."""
        left = max(0.0, 1 - self.song_s / self.use.generating_s) if self.use.generating_s else 0.0
        return self.use.generating_cost * left


class CostStore:
    """The tables of device time and of what it was for."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def add_device_time(self, row: WorkerRow, seconds: Mapping[str, float], price_per_hour: float) -> None:
        """Add the seconds for which a worker held its device, by use."""
        key = {"hour": this_hour(), "worker": row.id}
        fixed = {"model": row.model, "node": row.node, "price_per_hour": price_per_hour}
        amounts = {f"{use}_s": seconds.get(use, 0.0) for use in USES}
        with self._database.write(durable=False) as connection:
            increment(connection, device_hours, key | fixed, amounts)

    def accounts(self, hours: float) -> dict[str, Account]:
        """Every model's account over the last hours, the one under way included."""
        uses = self._uses(hours, device_hours.c.model)
        owners = self.owners(hours)
        return {
            model: Account(
                use=use,
                songs=sum(owner.songs for owner in owners if owner.model == model),
                audio_s=sum(owner.audio_s for owner in owners if owner.model == model),
                song_s=sum(owner.gpu_s for owner in owners if owner.model == model),
            )
            for (model,), use in uses.items()
        }

    def workers(self, hours: float) -> dict[tuple[str, ...], DeviceUse]:
        """By (model, node, worker)."""
        return self._uses(hours, device_hours.c.model, device_hours.c.node, device_hours.c.worker)

    def owners(self, hours: float) -> list[OwnerUse]:
        """By model and API key."""
        table = owner_hours.c
        sums = [sa.func.sum(table[name]).label(name) for name in ("songs", "audio_s", "gpu_s", "wasted_s")]
        by = (table.model, table.owner)
        query = sa.select(*by, *sums).where(table.hour > this_hour() - hours).group_by(*by).order_by(*by)
        with self._database.read() as connection:
            return [
                OwnerUse(row.model, row.owner, int(row.songs), row.audio_s, row.gpu_s, row.wasted_s)
                for row in connection.execute(query)
            ]

    def forget(self, older_s: float) -> None:
        """Drop what is older."""
        with self._database.write(durable=False) as connection:
            for table in (device_hours, owner_hours):
                connection.execute(table.delete().where(table.c.hour < this_hour() - older_s / _HOUR_S))

    def _uses(self, hours: float, *by: sa.Column[str]) -> dict[tuple[str, ...], DeviceUse]:
        table = device_hours.c
        spent = [table.loading_s, table.idle_s, table.generating_s]
        sums = [sa.func.sum(column) for column in spent]
        costs = [sa.func.sum(column * table.price_per_hour / _HOUR_S) for column in spent]
        query = sa.select(*by, *sums, *costs).where(table.hour > this_hour() - hours).group_by(*by).order_by(*by)
        with self._database.read() as connection:
            rows: list[list[Any]] = [list(row) for row in connection.execute(query)]
        return {tuple(row[: len(by)]): DeviceUse(*row[len(by) :]) for row in rows}


def add_songs(connection: sa.Connection, owner: str, model: str, *, songs: int, audio_s: float, gpu_s: float) -> None:
    """Put a finished job on its owner's account, in the transaction that publishes it."""
    amounts = {"songs": songs, "audio_s": audio_s, "gpu_s": gpu_s, "wasted_s": 0.0}
    increment(connection, owner_hours, {"hour": this_hour(), "owner": owner, "model": model}, amounts)


def add_wasted_time(connection: sa.Connection, owner: str, model: str, gpu_s: float) -> None:
    """Put an attempt that gave no song on its owner's account."""
    amounts = {"songs": 0, "audio_s": 0.0, "gpu_s": 0.0, "wasted_s": gpu_s}
    increment(connection, owner_hours, {"hour": this_hour(), "owner": owner, "model": model}, amounts)
