"""Hooks for schemathesis: songs stay short, because each one is really generated and encoded."""

import re
from typing import Any

import schemathesis

SHORT_S = 1.5
NUMBER = re.compile(r"[0-9]{1,3}(\.[0-9]{1,12})?")


@schemathesis.hook
def map_body(context: Any, body: Any) -> Any:
    """Replaces a long valid duration by a short valid one, and leaves everything else unchanged."""
    if isinstance(body, dict):
        duration = body.get("duration", 60.0)
        if isinstance(duration, str) and (duration == "auto" or NUMBER.fullmatch(duration)):
            return {**body, "duration": str(SHORT_S)}
        if isinstance(duration, int | float) and not isinstance(duration, bool) and SHORT_S < duration <= 600:
            return {**body, "duration": SHORT_S}
    return body
