"""PostgreSQL: time limits and connections. SQLite needs none of these settings."""

from typing import Self

from pydantic import Field

from serve_app.config.section import Section


class DatabaseArgs(Section):
    """How long Sophia waits for PostgreSQL, and how many connections a process opens."""

    connect_s: int = Field(5, ge=2, le=60, description="Seconds that opening a connection to PostgreSQL may take.")
    statement_s: float = Field(
        15,
        ge=1,
        le=600,
        description="Seconds that a statement may take, including its wait for locks, before PostgreSQL cancels it.",
    )
    silent_s: float = Field(
        5,
        ge=1,
        le=60,
        description="Seconds beyond `statement_s` without any answer from PostgreSQL after which a connection is closed.",
    )
    pool_size: int = Field(
        8,
        ge=1,
        le=100,
        description="Connections to PostgreSQL that an API process keeps open. One more listens for notifications.",
    )
    pool_overflow: int = Field(
        8,
        ge=0,
        le=100,
        description="Further connections that an API process opens under load and closes when they are no longer needed.",
    )
    worker_pool_size: int = Field(
        3,
        ge=2,
        le=100,
        description="The most connections to PostgreSQL that a worker opens. One more listens for notifications.",
    )

    @property
    def of_a_worker(self) -> Self:
        """The same settings for a worker: a small pool without overflow, because there may be many workers."""
        return self.model_copy(update={"pool_size": self.worker_pool_size, "pool_overflow": 0})

    @property
    def answer_s(self) -> float:
        """Seconds within which every statement is answered, or its connection is closed."""
        return self.statement_s + self.silent_s
