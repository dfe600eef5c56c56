"""Reports on the start of Sophia: one line a phase while it loads, three lines when it is ready, one sentence when it fails."""

import json
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from serve_app.ops.launch.address import Address
from serve_app.ops.launch.output import Output, show

_POLL_S: Final = 1.0
_TIMEOUT_S: Final = 10.0
_LINE_EVERY_S: Final = 10.0
"""Shortest time between two lines about new phases, in seconds: a download changes its percentage all the time."""
_REMINDER_S: Final = 60.0
"""A phase that lasts longer than this is printed again, in seconds."""
_TRACEBACK_S: Final = 2.0
"""Seconds within which Serve prints the rest of a failure."""

# The environment's proxy is for the internet: Sophia runs on this machine.
_CLIENT: Final = urllib.request.build_opener(urllib.request.ProxyHandler({}))

_SONG: Final = (
    "-H 'content-type: application/json' "
    """-d '{"prompt":"warm piano, calm","keyscale":"C major","duration":10,"seed":7,"format":"flac"}' -o song.flac"""
)


class StartReport:
    """Watches a start in a thread until Sophia is ready or cannot become so."""

    def __init__(self, address: Address, output: Output, on_failure: Callable[[], None]) -> None:
        """`on_failure` is called once, when Sophia will not become ready without a change."""
        self._url = address.url
        self._output = output
        self._on_failure = on_failure
        self._began_at = time.monotonic()
        self._printed = ""
        self._printed_at = 0.0
        self._stop = threading.Event()
        self.is_ready = False
        self.failure = ""
        """Why Sophia will not become ready; empty while it may."""

    def start(self) -> None:
        """Begin to watch."""
        threading.Thread(target=self._watch, name="start report", daemon=True).start()

    def stop(self) -> None:
        """Print nothing more."""
        self._stop.set()

    def _watch(self) -> None:
        while not self._stop.wait(_POLL_S):
            _, answer = self._get("/readyz")
            if answer.get("ready"):
                self.is_ready = True
                self._output.is_starting = False
                self._print_ready()
                return
            if failure := self._failure():
                self.failure = failure
                self._on_failure()
                return
            self._print_phase(answer.get("reason") or self._output.phase)

    def _print_phase(self, phase: str) -> None:
        now = time.monotonic()
        pause_s = _REMINDER_S if phase == self._printed else _LINE_EVERY_S
        if not self._printed or now - self._printed_at >= pause_s:
            show(f"[{now - self._began_at:3.0f} s] {phase}")
            self._printed = phase
            self._printed_at = now

    def _failure(self) -> str:
        """Why the start has failed: Serve has given up on the application, or no model can be loaded. Empty if it has not."""
        if self._output.failed.is_set():
            time.sleep(_TRACEBACK_S)
            return self._output.exception or "Ray Serve could not deploy the application"
        status, health = self._get("/v1/health")
        return failed_models(health.get("breakers") or {}) if status == 200 else ""

    def _print_ready(self) -> None:
        if self._stop.is_set():
            return
        status, found = self._get("/v1/models")
        _, health = self._get("/v1/health")
        models = found.get("models", []) if status == 200 else None
        for line in ready_lines(self._url, self._output.dashboard, models, health.get("workers") or []):
            show(line)

    def _get(self, path: str) -> tuple[int, dict[str, Any]]:
        """The status and JSON object of an answer; (0, {}) without an answer."""
        try:
            with _CLIENT.open(self._url + path, timeout=_TIMEOUT_S) as answer:
                return answer.status, _json_object(answer.read())
        except urllib.error.HTTPError as error:
            with error:
                return error.code, _json_object(error.read())
        except OSError:
            return 0, {}


def failed_models(breakers: Mapping[str, Mapping[str, Any]]) -> str:
    """Why no model can be loaded, from the breakers in /v1/health; empty while one may still be."""
    if not breakers or not all(breaker["open"] for breaker in breakers.values()):
        return ""
    return "; ".join(
        f"model {name} cannot be loaded: {(breaker['error'] or {}).get('message', 'no reason was given')}"
        for name, breaker in breakers.items()
    )


def ready_lines(
    url: str, dashboard: str, models: Sequence[Mapping[str, Any]] | None, workers: Sequence[Mapping[str, Any]]
) -> list[str]:
    """The three lines of a Sophia that is ready: where it is, which models it serves, and a command to try.

    `models` and `workers` are those of /v1/models and /v1/health; `models` is None when they need an API key.
    """
    where = f"Sophia is ready at {url}; API documentation: {url}/docs"
    if dashboard:
        where += f"; Ray dashboard: http://{dashboard}"
    key = "-H 'authorization: Bearer KEY' " if models is None else ""
    return [where, f"Models: {_models_line(models, workers)}", f"Try: curl -s {url}/v1/music {key}{_SONG}"]


def _models_line(models: Sequence[Mapping[str, Any]] | None, workers: Sequence[Mapping[str, Any]]) -> str:
    if models is None:
        return "every request needs an API key, and '.venv/bin/sophia keys create NAME' makes one."
    devices = {worker["model"]: worker["device"] for worker in workers if worker.get("device")}
    planners = {worker["model"]: worker["planner"] for worker in workers if worker.get("planner")}
    sentences = [
        _model_sentence(model, devices.get(model["name"])) + _planner_sentence(planners.get(model["name"]))
        for model in models
    ]
    return " ".join(sentences)


def _model_sentence(model: Mapping[str, Any], device: str | None) -> str:
    runs = f"runs on {device}" if device and model["ready_workers"] else "gets a worker with its first job"
    sentence = f"{model['name']} ({model['source']}) {runs}."
    if model["note"]:
        sentence += f" It is {model['note']}. For real songs, use an NVIDIA GPU or set models.{model['name']}.source."
    return sentence


def _planner_sentence(planner: Mapping[str, Any] | None) -> str:
    """Where a worker's songs are planned, and what was measured; empty if they are not planned or that is not known yet."""
    if planner is None:
        return ""
    if planner["placement"] == "own":
        return f" Its songs are planned in other processes. {planner['reason'] or ''}".rstrip()
    weights = planner["weights_bytes"] / 1e9
    cache = planner["cache_bytes"] / 1e9
    free = planner["free_bytes"] / 1e9
    return (
        f" Its planner runs in the worker: {weights:.2f} GB of weights and {cache:.2f} GB of cache for {planner['rows']} "
        f"sequences; {free:.2f} GB were free beside the model."
    )


def _json_object(body: bytes) -> dict[str, Any]:
    try:
        found = json.loads(body)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}
