"""The interface between a worker and its planner."""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal, Protocol, Self

from serve_app.music.plan import Plan, Thinking
from serve_app.music.vocabulary import Language

PlanKind = Literal["plan", "format", "sample", "understand"]
"""What a planner can be asked for: the methods of `Planner`."""


@dataclass(frozen=True, slots=True)
class Sampling:
    """How the planner draws its tokens. The defaults are the original's (contract of the engine, section 6)."""

    temperature: float = 0.85
    """0 takes the likeliest token."""
    guidance: float = 2.0
    """Classifier-free guidance: unconditional + guidance x (conditional - unconditional); 1 is none."""
    top_k: int = 0
    """0 is all."""
    top_p: float = 0.9
    negative_prompt: str | None = None


@dataclass(frozen=True, slots=True)
class Wishes:
    """What a song's author has decided. What is None, the planner decides; the rest stands in its plan verbatim."""

    caption: str
    lyrics: str = ""
    bpm: int | None = None
    keyscale: str | None = None
    timesignature: str | None = None
    duration: float | None = None
    longest: float = 600.0
    """The most seconds that the planner may choose where `duration` is None."""
    language: Language | None = None
    instrumental: bool = False
    thinking: Thinking = "codes"
    songs: int = 1
    """How many sequences of codes to plan: one phase of metadata, then one of codes for each song."""
    seed: int = 0
    sampling: Sampling = Sampling()

    def to_json(self) -> dict[str, Any]:
        """The fields by their names, as plain JSON values."""
        return asdict(self)

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> Self:
        """The wishes that `to_json` gave. Fields that a later version has added are ignored."""
        known = {name: fields[name] for name in cls.__dataclass_fields__ if name in fields}
        sampling = known.pop("sampling", {})
        return cls(
            **known, sampling=Sampling(**{name: sampling[name] for name in Sampling.__match_args__ if name in sampling})
        )


@dataclass(frozen=True, slots=True)
class PlannerFacts:
    """Describes a loaded planner and its device. Sizes are in bytes."""

    source: str
    revision: str | None
    dtype: str
    device: str
    random: bool
    """Whether the weights are random, so that its plans mean nothing."""
    weights_bytes: int
    cache_bytes: int
    """Of the key-value cache."""
    rows: int
    """How many sequences it decodes at once; a song with guidance takes two."""
    versions: Mapping[str, str]
    free_bytes: int = 0
    """Free on the device before the planner was loaded; beside a model, after that was loaded."""


OnToken = Callable[[str, int, int], None]
"""Called with a stage (metadata or codes), its finished tokens, and how many it will have at most."""


class Planner(Protocol):
    """Plans songs with one language model. All methods may be called from many threads: their songs share one decode loop."""

    def load(self, report: Callable[[str, float | None, str], None]) -> PlannerFacts:
        """Load the model. Calls `report` with phase, progress (0 to 1 or None) and a description. Raises LoadError."""

    def plan(self, wishes: Wishes, on_token: OnToken, stopped: Callable[[], bool]) -> Plan:
        """Plan a job's songs. Raises Stopped soon after `stopped()` has become true."""

    def format(self, wishes: Wishes, stopped: Callable[[], bool]) -> Plan:
        """Write caption and lyrics anew, with metadata that suits them, and without codes."""

    def sample(self, query: str, instrumental: bool, wishes: Wishes, stopped: Callable[[], bool]) -> Plan:
        """Make up caption, lyrics and metadata for a description in plain words, without codes."""

    def understand(self, codes: tuple[int, ...], wishes: Wishes, stopped: Callable[[], bool]) -> Plan:
        """Caption, lyrics and metadata of a song, from its audio codes."""

    def close(self) -> None:
        """End the loop. Calls that wait raise Stopped."""
