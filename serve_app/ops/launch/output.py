"""Reads what `serve run` prints: everything goes to the log file, warnings and errors also to the terminal.

Ray and Serve write in four formats, and Ray puts the name of the process before each line of a worker.
"""

import json
import logging
import re
import sys
import threading
from contextlib import suppress
from logging.handlers import RotatingFileHandler
from pathlib import Path
from typing import Final, TextIO

from serve_app.errors import ConfigurationError

_LOG_BYTES: Final = 20_000_000
_LOG_FILES: Final = 3
_PROBE_BYTES: Final = 65_536

_COLOUR: Final = re.compile(r"\x1b\[[0-9;]*m")
_PROCESS: Final = re.compile(r"^\([^()]*(?:pid=\d+|raylet|autoscaler)[^()]*\) ?")
_TIME: Final = r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d[,.]\d+"
_FORMATS: Final = (
    re.compile(rf"(?P<level>[A-Z]+) {_TIME} .*? -- (?P<text>.*)"),  # Serve: LEVEL TIME COMPONENT -- TEXT
    re.compile(rf"{_TIME}\s+(?P<level>[A-Z]+) \S+ -- (?P<text>.*)"),  # Ray in Python: TIME LEVEL FILE:LINE -- TEXT
    re.compile(
        rf"\[{_TIME} (?P<level>[A-Z]) \d+ \d+\] .*?\S+\.\w+:\d+: (?P<text>.*)"
    ),  # Ray in C++: [TIME L PID TID] FILE:LINE: TEXT
    re.compile(r"(?P<level>WARNING|ERROR|Warning|Error): (?P<text>.*)"),  # raylet and autoscaler
)
_EXCEPTION: Final = re.compile(r"^(?:[\w.]+\.)?(?P<kind>[A-Z]\w*(?:Error|Exception|Exit))(?:: (?P<text>.*))?$")

_HARMLESS: Final = (
    "Token authentication is enabled for this Ray cluster",  # Sophia turns it on
    "Failed to determine local IP via external connectivity",  # a machine without a network works
    "Cannot deregister autoscaling state",  # Serve logs it for each deployment of fixed size
    "no such table: jobs",  # the policy looks before the first API process has made the tables
    "to initialize",  # Serve logs it for each load that takes over 30 s
)
"""Warnings that a successful start prints as well."""

_WORKER: Final = re.compile(r"worker [0-9a-f-]{36} ")
"""How the lines of a worker begin. While Sophia starts, they are hidden: the report gets the same facts from `/readyz`."""

_STACK: Final = re.compile(r"\*\*\*|PC: |\s*@ ")
"""How the lines of Ray's stack traces begin."""

_PHASES: Final = {
    "Started a local Ray instance": "Serve is starting",
    "Connected to Ray cluster": "Serve is starting",
    "Importing and building app": "the application is being built",
    "Imported and built app": "the API is starting",
}
"""What is under way once Ray or Serve has printed a text."""

_FAILED: Final = re.compile(
    r"Deploying app '.*' failed|Failed to update the deployments|Unexpected error occurred while applying"
)
"""Serve prints one of these when it has given up on an application; `serve run` keeps running."""

_DASHBOARD: Final = re.compile(r"View the dashboard at (?:http://)?([\w.:\[\]-]+)")


class LogFile:
    """The file with the whole output of `serve run`. Only its owner can read it; the last 80 MB are kept."""

    def __init__(self, folder: Path) -> None:
        """Raises ConfigurationError when the folder cannot be written to."""
        self.path = folder / "serve.log"
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._handler = RotatingFileHandler(
                self.path, maxBytes=_LOG_BYTES, backupCount=_LOG_FILES, encoding="utf-8"
            )
            _need_space(folder)
        except OSError as error:
            raise ConfigurationError(
                f"{folder} cannot be written to: {error.strerror}. Make room there, or set data_dir to another folder."
            ) from error
        logging.raiseExceptions = False  # if the disk fills up later, lines are lost without a traceback for each

    def write(self, line: str) -> None:
        """Append a line."""
        self._handler.emit(logging.LogRecord("serve", logging.INFO, "", 0, line, None, None))

    def close(self) -> None:
        """Close the file."""
        self._handler.close()


def _need_space(folder: Path) -> None:
    """Raise OSError when the disk does not take a small file."""
    probe = folder / ".space"
    try:
        probe.write_bytes(bytes(_PROBE_BYTES))
    finally:
        probe.unlink(missing_ok=True)


class Output:
    """Sorts the lines of `serve run` and remembers what the report on the start needs."""

    def __init__(self, log: LogFile) -> None:
        self._log = log
        self.phase = "Ray is starting"
        self.dashboard = ""
        """The host and port of Ray's dashboard; empty until Ray has printed it."""
        self.exception = ""
        """The last exception that was printed, as one sentence."""
        self.failed = threading.Event()
        """Set when Serve has given up on the application."""
        self.is_starting = True
        self.is_stopping = False

    def read(self, line: str) -> None:
        """Take one line of output, without its newline."""
        line = _PROCESS.sub("", _COLOUR.sub("", line))
        self._log.write(line)
        self._remember(line)
        found = record(line)
        if found is not None and found[0] in "WEFC" and not self._is_hidden(found[1]):
            show(f"{'warning' if found[0] == 'W' else 'error'}: {found[1]}", sys.stderr)

    def _is_hidden(self, text: str) -> bool:
        if self.is_stopping or _STACK.match(text) or any(harmless in text for harmless in _HARMLESS):
            return True
        return self.is_starting and bool(_WORKER.match(text))

    def _remember(self, line: str) -> None:
        self.phase = next((phase for text, phase in _PHASES.items() if text in line), self.phase)
        if dashboard := _DASHBOARD.search(line):
            self.dashboard = dashboard[1]
        if exception := _EXCEPTION.match(line):
            self.exception = exception["text"] or exception["kind"]
        if _FAILED.search(line):
            self.failed.set()


def record(line: str) -> tuple[str, str] | None:
    """The first letter of the level and the text of a line that begins a log record; None for a continuation, as of a traceback."""
    if line.startswith("{"):  # logging_config: {encoding: JSON}
        with suppress(ValueError, KeyError):
            fields = json.loads(line)
            return str(fields["levelname"])[:1] or "I", str(fields["message"]).partition("\n")[0]
    for form in _FORMATS:
        if found := form.match(line):
            return found["level"][0], found["text"]
    return None


def show(text: str, stream: TextIO | None = None) -> None:
    """Print a line at once. It is lost without an error if the terminal has been closed."""
    with suppress(OSError):
        print(text, file=stream or sys.stdout, flush=True)
