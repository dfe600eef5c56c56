"""What a planner is asked to do, as the JSON of a row in the table of plans."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, assert_never

from serve_app.engine.planner.protocol import OnToken, PlanKind, Planner, Wishes
from serve_app.music.plan import Plan


def order(wishes: Wishes, query: str = "", codes: Sequence[int] = (), source: str = "") -> dict[str, Any]:
    """The arguments of the planner's methods. `query` is for `sample`, `codes` are for `understand`.

    `source` names a recording whose codes are not known yet: the worker finds them before `carried_out`.
    """
    return {"wishes": wishes.to_json(), "query": query, "codes": list(codes), "source": source}


def carried_out(
    planner: Planner, kind: PlanKind, order: Mapping[str, Any], on_token: OnToken, stopped: Callable[[], bool]
) -> Plan:
    """Let the planner do what `order` has ordered. Raises what the planner's method raises."""
    wishes = Wishes.from_json(order["wishes"])
    match kind:
        case "plan":
            return planner.plan(wishes, on_token, stopped)
        case "format":
            return planner.format(wishes, stopped)
        case "sample":
            return planner.sample(order["query"], wishes.instrumental, wishes, stopped)
        case "understand":
            return planner.understand(tuple(order["codes"]), wishes, stopped)
        case _:
            assert_never(kind)
