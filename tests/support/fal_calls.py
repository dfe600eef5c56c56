"""The real `fal_client` package, in an environment of its own: does what each line of its input asks for, and prints a line.

A line is a JSON list: the kind of client (`sync` or `asyncio`), the API key, the call and its arguments. The answer is
`{"result": …}` or, after an exception, `{"error": class, "status": …, "text": …}`. The hosts come from FAL_RUN_HOST and
FAL_QUEUE_RUN_HOST, and the trusted certificate from SSL_CERT_FILE, which the package itself reads.
"""

import asyncio
import json
import sys
from typing import Any

from fal_client import AsyncClient, SyncClient


def _named(status: Any) -> dict[str, Any]:
    """A status by the name of its class, with its fields."""
    return {"kind": type(status).__name__, **vars(status)}


def _call(key: str, call: str, app: str, given: Any, seconds: float | None) -> Any:
    client = SyncClient(key=key)
    if call == "run":
        return client.run(app, given, timeout=seconds)
    if call == "subscribe":
        seen: list[str] = []
        result = client.subscribe(
            app, given, with_logs=True, on_queue_update=lambda status: seen.append(_named(status)["kind"])
        )
        return {"seen": seen, "result": result}
    if call == "submit":
        return client.submit(app, given).request_id
    answer = getattr(client, call)(app, given)
    return _named(answer) if call == "status" else answer


async def _call_asyncio(key: str, call: str, app: str, given: Any, seconds: float | None) -> Any:
    client = AsyncClient(key=key)
    if call == "run":
        return await asyncio.wait_for(client.run(app, given), seconds)
    if call == "subscribe":
        seen: list[str] = []
        result = await client.subscribe(
            app, given, with_logs=True, on_queue_update=lambda status: seen.append(_named(status)["kind"])
        )
        return {"seen": seen, "result": result}
    if call == "submit":
        return (await client.submit(app, given)).request_id
    answer = await getattr(client, call)(app, given)
    return _named(answer) if call == "status" else answer


def _answer(kind: str, *call: Any) -> dict[str, Any]:
    try:
        return {"result": _call(*call) if kind == "sync" else asyncio.run(_call_asyncio(*call))}
    except Exception as error:
        return {"error": type(error).__name__, "status": getattr(error, "status_code", None), "text": str(error)}


def main() -> None:
    """Answer line by line until the input ends."""
    for line in sys.stdin:
        print(json.dumps(_answer(*json.loads(line))), flush=True)


if __name__ == "__main__":
    main()
