"""The real `elevenlabs` package, in an environment of its own: does what each line of its input asks for, and prints a line.

A line is a JSON list: the kind of client (`sync` or `asyncio`), the API key, the call, its arguments and the seconds to wait. The
answer is `{"result": …}` or, after an exception, `{"error": class, "status": …, "text": …}`. Audio is base64.
"""

import asyncio
import base64
import json
import os
import sys
from typing import Any

from elevenlabs.client import AsyncElevenLabs, ElevenLabs

BASE_URL = f"{os.environ['SOPHIA_URL']}/elevenlabs"


def _text(audio: bytes) -> str:
    return base64.b64encode(audio).decode()


def _call(key: str, call: str, fields: dict[str, Any], options: dict[str, Any]) -> Any:
    music = ElevenLabs(base_url=BASE_URL, api_key=key).music
    if call == "plan":
        return music.composition_plan.create(**fields, request_options=options).model_dump(exclude_none=True)
    if call == "detailed":
        found = music.compose_detailed(**fields, request_options=options)
        return {"audio": _text(found.audio), "json": found.json, "filename": found.filename, "song": found.song_id}
    return _text(b"".join(getattr(music, call)(**fields, request_options=options)))


async def _call_asyncio(key: str, call: str, fields: dict[str, Any], options: dict[str, Any]) -> Any:
    music = AsyncElevenLabs(base_url=BASE_URL, api_key=key).music
    if call == "plan":
        plan = await music.composition_plan.create(**fields, request_options=options)
        return plan.model_dump(exclude_none=True)
    if call == "detailed":
        found = await music.compose_detailed(**fields, request_options=options)
        return {"audio": _text(found.audio), "json": found.json, "filename": found.filename, "song": found.song_id}
    return _text(b"".join([chunk async for chunk in getattr(music, call)(**fields, request_options=options)]))


def _answer(kind: str, key: str, call: str, fields: dict[str, Any], seconds: float) -> dict[str, Any]:
    options = {"timeout_in_seconds": seconds}
    try:
        if kind == "sync":
            return {"result": _call(key, call, fields, options)}
        return {"result": asyncio.run(_call_asyncio(key, call, fields, options))}
    except Exception as error:
        status = getattr(error, "status_code", None)
        return {"error": type(error).__name__, "status": status, "text": str(getattr(error, "body", error))}


def main() -> None:
    """Answer line by line until the input ends."""
    for line in sys.stdin:
        print(json.dumps(_answer(*json.loads(line))), flush=True)


if __name__ == "__main__":
    main()
