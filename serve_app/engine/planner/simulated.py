"""A planner that sleeps instead of computing, so that tests of scheduling need no language model."""

import time
from collections.abc import Callable
from dataclasses import replace
from typing import Final, cast

from serve_app import errors
from serve_app.config import ModelArgs
from serve_app.engine.planner.protocol import OnToken, PlannerFacts, Wishes
from serve_app.music.plan import CODES, CODES_PER_SECOND, Plan, TimeSignature

_SHORTEST_S: Final = 10.0
_TICK_S: Final = 0.05


class SimulatedPlanner:
    """Sleeps `simulated.plan_s` for each second of a song instead of planning. Only for tests of scheduling, scaling and faults.

    The codes depend on the seed and mean nothing. What the wishes leave open is always the same: 120 bpm, C major, 4/4, 10 s.
    """

    def __init__(self, args: ModelArgs) -> None:
        self._args = args

    def load(self, report: Callable[[str, float | None, str], None]) -> PlannerFacts:
        """Report the phases of a real load."""
        report("load", None, "simulated: no planner to load")
        return PlannerFacts("simulated", None, "none", "simulated", True, 0, 0, 2 * self._args.planner.jobs_at_once, {})

    def plan(self, wishes: Wishes, on_token: OnToken, stopped: Callable[[], bool]) -> Plan:
        """Sleep for as long as the songs are, then return codes that follow from the seed."""
        plan = _metadata(wishes)
        tokens = round((plan.duration or 0) * CODES_PER_SECOND)
        self._sleep(plan.duration or 0, lambda done: on_token("codes", round(done * tokens), tokens), stopped)
        if wishes.thinking != "codes":
            return plan
        return replace(plan, codes=tuple(_codes(wishes.seed + song, tokens) for song in range(wishes.songs)))

    def format(self, wishes: Wishes, stopped: Callable[[], bool]) -> Plan:
        """Return the wishes as they are."""
        self._sleep(1.0, lambda done: None, stopped)
        return _metadata(wishes)

    def sample(self, query: str, instrumental: bool, wishes: Wishes, stopped: Callable[[], bool]) -> Plan:
        """Return the query as the caption."""
        self._sleep(1.0, lambda done: None, stopped)
        return replace(_metadata(wishes), caption=query, instrumental=instrumental)

    def understand(self, codes: tuple[int, ...], wishes: Wishes, stopped: Callable[[], bool]) -> Plan:
        """Return a caption that is the same for every song, and the length of the codes."""
        self._sleep(1.0, lambda done: None, stopped)
        return replace(_metadata(wishes), caption="a simulated song", duration=len(codes) / CODES_PER_SECOND)

    def close(self) -> None:
        """There is nothing to end: each call sleeps in the thread of its caller."""

    def _sleep(self, song_s: float, report: Callable[[float], None], stopped: Callable[[], bool]) -> None:
        """Sleep for a song of `song_s` seconds, and report the elapsed fraction."""
        began = time.monotonic()
        lasts_s = song_s * self._args.simulated.plan_s
        while (gone_s := time.monotonic() - began) < lasts_s:
            if stopped():
                raise errors.Stopped
            report(gone_s / lasts_s)
            time.sleep(min(_TICK_S, lasts_s - gone_s))
        if stopped():
            raise errors.Stopped


def _metadata(wishes: Wishes) -> Plan:
    return Plan(
        caption=wishes.caption,
        lyrics=wishes.lyrics,
        bpm=wishes.bpm or 120,
        keyscale=wishes.keyscale or "C major",
        timesignature=cast(TimeSignature | None, wishes.timesignature) or "4",
        duration=wishes.duration or min(_SHORTEST_S, wishes.longest),
        language=wishes.language or "unknown",
        instrumental=wishes.instrumental,
        seed=wishes.seed,
    )


def _codes(seed: int, count: int) -> tuple[int, ...]:
    return tuple((seed + 7 * number) % CODES for number in range(count))
