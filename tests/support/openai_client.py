"""The real `openai` and `litellm` packages, in an environment of their own: do what the lines on their input ask for.

A line is a JSON list: the kind of client (`sync`, `asyncio` or `litellm`), the API key, the call, its arguments, and its own
`timeout` and `max_retries`. The answer is `{"result": …}` or, after an exception, `{"error": class, "status": …, "text": …}`.
The base URL comes from OPENAI_BASE_URL, which the packages themselves read. Nothing of them is changed.
"""

import asyncio
import base64
import json
import os
import sys
import tempfile
from collections.abc import Callable, Coroutine
from functools import partial
from pathlib import Path
from typing import Any

import litellm
import openai


class Sync:
    """The client that blocks."""

    def __init__(self, key: str, **options: Any) -> None:
        self._client = openai.OpenAI(api_key=key, **options)

    def speech(self, **fields: Any) -> Any:
        return _base64(self._client.audio.speech.create(**fields).content)

    def speech_to_file(self, **fields: Any) -> Any:
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "song"
            with self._client.audio.speech.with_streaming_response.create(**fields) as response:
                response.stream_to_file(file)
            return _base64(file.read_bytes())

    def models(self) -> Any:
        return [model.id for model in self._client.models.list()]

    def model(self, name: str) -> Any:
        return self._client.models.retrieve(name).id

    def chat(self, **fields: Any) -> Any:
        return self._client.chat.completions.create(**fields).to_dict()

    def chat_stream(self, **fields: Any) -> Any:
        return [chunk.to_dict() for chunk in self._client.chat.completions.create(stream=True, **fields)]


class Asyncio:
    """The client for asyncio."""

    def __init__(self, key: str, **options: Any) -> None:
        self._options = {"api_key": key, **options}

    def speech(self, **fields: Any) -> Any:
        async def call(client: openai.AsyncOpenAI) -> Any:
            return _base64((await client.audio.speech.create(**fields)).content)

        return self._run(call)

    def speech_to_file(self, **fields: Any) -> Any:
        async def call(client: openai.AsyncOpenAI) -> Any:
            with tempfile.TemporaryDirectory() as folder:
                file = Path(folder) / "song"
                async with client.audio.speech.with_streaming_response.create(**fields) as response:
                    await response.stream_to_file(file)
                return _base64(file.read_bytes())

        return self._run(call)

    def models(self) -> Any:
        async def call(client: openai.AsyncOpenAI) -> Any:
            return [model.id async for model in client.models.list()]

        return self._run(call)

    def model(self, name: str) -> Any:
        async def call(client: openai.AsyncOpenAI) -> Any:
            return (await client.models.retrieve(name)).id

        return self._run(call)

    def chat(self, **fields: Any) -> Any:
        async def call(client: openai.AsyncOpenAI) -> Any:
            return (await client.chat.completions.create(**fields)).to_dict()

        return self._run(call)

    def chat_stream(self, **fields: Any) -> Any:
        async def call(client: openai.AsyncOpenAI) -> Any:
            return [chunk.to_dict() async for chunk in await client.chat.completions.create(stream=True, **fields)]

        return self._run(call)

    def _run(self, call: Callable[[openai.AsyncOpenAI], Coroutine[Any, Any, Any]]) -> Any:
        async def within() -> Any:
            async with openai.AsyncOpenAI(**self._options) as client:
                return await call(client)

        return asyncio.run(within())


class Litellm:
    """LiteLLM's functions, which go to OpenAI's API for models that begin with `openai/`."""

    def __init__(self, key: str, **options: Any) -> None:
        self._options = {"api_key": key, "api_base": os.environ["OPENAI_BASE_URL"], **options}

    def speech(self, **fields: Any) -> Any:
        return _base64(litellm.speech(**self._own(fields)).content)

    def chat(self, **fields: Any) -> Any:
        return litellm.completion(**self._own(fields)).model_dump()

    def chat_stream(self, **fields: Any) -> Any:
        return [chunk.model_dump() for chunk in litellm.completion(stream=True, **self._own(fields))]

    def _own(self, fields: dict[str, Any]) -> dict[str, Any]:
        return {**self._options, **fields, "model": f"openai/{fields['model']}"}


CLIENTS: dict[str, Callable[..., Any]] = {"sync": Sync, "asyncio": Asyncio, "litellm": Litellm}


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def _answer(action: Callable[[], Any]) -> dict[str, Any]:
    try:
        return {"result": action()}
    except Exception as error:
        status = getattr(error, "status_code", None)
        return {"error": type(error).__name__, "status": status, "text": str(error)}


def main() -> None:
    """Answer line by line until the input ends."""
    answers = sys.stdout
    sys.stdout = sys.stderr  # litellm prints advice
    for line in sys.stdin:
        kind, key, call, arguments, options = json.loads(line)
        action = getattr(CLIENTS[kind](key, **options), call)
        print(json.dumps(_answer(partial(action, **arguments))), file=answers, flush=True)


if __name__ == "__main__":
    main()
