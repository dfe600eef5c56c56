"""The short form of chaos, with the real pipeline; `make chaos` runs the long one on both databases."""

from pathlib import Path

import pytest

from tests.support.chaos import Plan, run

pytestmark = [pytest.mark.long, pytest.mark.timeout(600)]


def test_nothing_is_lost_while_everything_is_killed(tmp_path: Path, cache: Path, checkpoint: Path) -> None:
    """Two hundred songs from the embedded checkpoint while everything is broken: all are there, once."""
    plan = Plan(jobs=200, events=9, seed=11, engine="embedded", workers=2, pause_s=(1.0, 4.0))
    outcome = run(plan, tmp_path, cache)
    assert {"worker", "api", "controller", "proxy", "bad_host", "pause", "end_while_loading"} <= set(outcome.events)
