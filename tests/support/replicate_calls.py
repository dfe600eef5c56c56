"""The real `replicate` package, in an environment of its own: does what each line of its input asks for, and prints a line.

A line is a JSON list: the kind of client (`sync` or `asyncio`), the API key, the call, the model or prediction, and the input. The
answer is `{"result": …}` or, after an exception, `{"error": class, "status": …, "text": …}`. Audio is base64.
"""

import asyncio
import base64
import json
import os
import sys
from typing import Any

from replicate.client import Client


def _client(key: str) -> Client:
    return Client(api_token=key, base_url=f"{os.environ['SOPHIA_URL']}/replicate", verify=os.environ["SSL_CERT_FILE"])


def _call(key: str, call: str, name: str, given: Any) -> Any:
    client = _client(key)
    if call == "run":
        return [base64.b64encode(song.read()).decode() for song in client.run(name, input=given)]
    if call == "create":
        return client.models.predictions.create(model=name, input=given).id
    prediction = client.predictions.cancel(name) if call == "cancel" else client.predictions.get(name)
    return prediction.status


async def _call_asyncio(key: str, call: str, name: str, given: Any) -> Any:
    client = _client(key)
    if call == "run":
        return [base64.b64encode(await song.aread()).decode() for song in await client.async_run(name, input=given)]
    if call == "create":
        return (await client.models.predictions.async_create(model=name, input=given)).id
    if call == "cancel":
        return (await client.predictions.async_cancel(name)).status
    return (await client.predictions.async_get(name)).status


def _answer(kind: str, *call: Any) -> dict[str, Any]:
    try:
        return {"result": _call(*call) if kind == "sync" else asyncio.run(_call_asyncio(*call))}
    except Exception as error:
        return {"error": type(error).__name__, "status": getattr(error, "status", None), "text": str(error)}


def main() -> None:
    """Answer line by line until the input ends."""
    for line in sys.stdin:
        print(json.dumps(_answer(*json.loads(line))), flush=True)


if __name__ == "__main__":
    main()
