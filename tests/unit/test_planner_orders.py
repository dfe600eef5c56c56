"""What a planner is asked to do, written to the database and read again."""

import json
from collections.abc import Callable
from typing import Any, get_args

import pytest

from serve_app.engine.planner.orders import carried_out, order
from serve_app.engine.planner.protocol import PlanKind, Sampling, Wishes
from serve_app.music.plan import Plan

WISHES = Wishes(
    "piano", "la", 92, "C major", "4", None, 90.0, "en", True, "codes", 2, 7, Sampling(0.5, 3.0, 40, 0.8, "noise")
)


class _Recorder:
    """Notes how it is called."""

    def __init__(self) -> None:
        self.calls: list[tuple[Any, ...]] = []

    def __getattr__(self, name: str) -> Callable[..., Plan]:
        def method(*arguments: Any) -> Plan:
            self.calls.append((name, *arguments))
            return Plan("done")

        return method


def _on_token(stage: str, step: int, steps: int) -> None:
    del stage, step, steps


def _goes_on() -> bool:
    return False


@pytest.mark.parametrize(
    ("kind", "arguments"),
    [
        ("plan", (WISHES, _on_token)),
        ("format", (WISHES,)),
        ("sample", ("a sad song", True, WISHES)),
        ("understand", ((5, 6), WISHES)),
    ],
)
def test_an_order_calls_the_planner_with_what_was_written(kind: PlanKind, arguments: tuple[Any, ...]) -> None:
    """After a way through JSON, the planner's method gets the same wishes, query and codes."""
    planner: Any = _Recorder()
    stored = json.loads(json.dumps(order(WISHES, query="a sad song", codes=[5, 6])))

    plan = carried_out(planner, kind, stored, _on_token, _goes_on)

    assert plan == Plan("done")
    assert planner.calls == [(kind, *arguments, _goes_on)]
    assert kind in get_args(PlanKind)


def test_an_order_of_a_later_version_can_be_read() -> None:
    """Fields that this version does not know are ignored, as during an update."""
    stored = WISHES.to_json()
    stored["mood"] = "blue"
    stored["sampling"]["beams"] = 4

    assert Wishes.from_json(stored) == WISHES
