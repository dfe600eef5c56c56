"""The MCP server, and its answer to one POST."""

import logging
from contextlib import ExitStack
from typing import Any, Final

from fastapi import Response
from mcp.server.lowlevel.server import Server
from mcp.server.streamable_http_manager import StreamableHTTPSessionManager
from sse_starlette.sse import AppStatus
from starlette.types import Message, Receive, Scope, Send

from serve_app import __version__
from serve_app.api.compat.mcp import SESSION
from serve_app.api.context import Context
from serve_app.api.file_answer import wait_until_read
from serve_app.api.mcp.calls import Room
from serve_app.api.mcp.resources import list_resources, list_templates, read_resource
from serve_app.api.mcp.tools import TOOLS, call_tool, list_tools

logging.getLogger("mcp").setLevel(logging.WARNING)  # it would report every POST
AppStatus.enable_automatic_graceful_drain = False  # Sophia's own stop answers the calls that wait

_INSTRUCTIONS: Final = (
    "Sophia makes songs with ACE-Step 1.5. Describe the music in `prompt`; a song with words needs `lyrics`, with section marks "
    "such as [verse]. A song takes from seconds to minutes. generate_music waits for it and reports progress. If it answers with a "
    "job that is still queued or running, call get_song with its id."
)


SERVER: Final[Server[Any]] = Server(
    "sophia",
    version=__version__,
    title="Sophia",
    description="Songs from ACE-Step 1.5",
    instructions=_INSTRUCTIONS,
    get_tool_input_schema=lambda name: TOOLS[name].listed.input_schema if name in TOOLS else None,
    on_list_tools=list_tools,
    on_call_tool=call_tool,
    on_list_resources=list_resources,
    on_list_resource_templates=list_templates,
    on_read_resource=read_resource,
)
SERVER.middleware.clear()  # its own traces every message


class McpAnswer(Response):
    """The answer to one POST, which the `mcp` package writes. Audio in it counts as inline audio until the client has read it."""

    def __init__(self, context: Context, body: bytes, session: str | None) -> None:
        """`body` is that of the request; `session` is the id of the session that the answer opens, if it does."""
        super().__init__()
        self._body = body
        self._most_bytes = context.args.api.max_body_bytes
        self._session = session

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve the message. When the client leaves, what serves it is cancelled."""
        manager = StreamableHTTPSessionManager(SERVER, stateless=True, max_request_body_size=self._most_bytes)
        with ExitStack() as stack:
            room = Room(stack)
            scope.setdefault("state", {})["inline_room"] = room
            async with manager.run():
                await manager.handle_request(scope, _replayed(self._body, receive), self._with_session(send))
            if room.is_used:
                await wait_until_read(receive)

    def _with_session(self, send: Send) -> Send:
        if self._session is None:
            return send
        header = (SESSION.encode(), self._session.encode())

        async def send_with_session(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", ()), header]
            await send(message)

        return send_with_session


def _replayed(body: bytes, receive: Receive) -> Receive:
    """`receive` of a request whose body has been read: returns the body again, then what follows it."""
    unread: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def replay() -> Message:
        return unread.pop() if unread else await receive()

    return replay
