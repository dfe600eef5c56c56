"""The base classes of what the service answers with."""

from typing import cast

from pydantic import BaseModel, ConfigDict

from sophia_client.song_fields import GivenPlan


class Answer(BaseModel):
    """A JSON object of an answer. Fields that a newer service adds are ignored."""

    model_config = ConfigDict(frozen=True, extra="ignore", protected_namespaces=())


class PlanAnswer(Answer):
    """What can be done with a plan."""

    def given(self) -> GivenPlan:
        """The plan as a request's `plan`, which is used instead of a new one. Change what you like."""
        return cast(GivenPlan, self.model_dump())


class JobAnswer(Answer):
    """What follows from a job's state."""

    id: str
    state: str

    @property
    def has_ended(self) -> bool:
        """Whether the job is in a final state. Only `retry` changes such a job."""
        return self.state not in ("queued", "running")

    def song(self, index: int = 0) -> str:
        """The name of one of its songs, numbered from 0, for a request's `source` or `reference`."""
        return f"job:{self.id}/{index}"
