"""Hooks for schemathesis: songs stay short, since what is fuzzed is the interface and each one is really encoded."""

from typing import Any

import schemathesis

SHORT_S = 1.5


@schemathesis.hook
def map_body(context: Any, body: Any) -> Any:
    """A long duration that is valid becomes a short one that is valid; everything else stays as it was drawn."""
    if isinstance(body, dict):
        duration = body.get("duration", 60.0)
        if duration == "auto":
            return {**body, "duration": SHORT_S}
        if isinstance(duration, int | float) and not isinstance(duration, bool) and SHORT_S < duration <= 600:
            return {**body, "duration": SHORT_S}
    return body
