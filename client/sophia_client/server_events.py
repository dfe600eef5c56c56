"""Reads server-sent events (WHATWG's HTML standard, section 9.2.6), of which the service uses the fields `id` and `data`."""

from typing import NamedTuple


class ServerEvent(NamedTuple):
    """One event: its id, and its data as text."""

    id: str
    data: str


class EventReader:
    """Puts events together from lines."""

    def __init__(self) -> None:
        self._id = ""
        self._data: list[str] = []

    def event_at(self, line: str) -> ServerEvent | None:
        """Take the next line, without its end. Returns the event that it completes, if it does."""
        if not line:
            return self._completed()
        name, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if name == "id":
            self._id = value
        elif name == "data":
            self._data.append(value)
        return None

    def _completed(self) -> ServerEvent | None:
        data = "\n".join(self._data)
        self._data.clear()
        return ServerEvent(self._id, data) if data else None
