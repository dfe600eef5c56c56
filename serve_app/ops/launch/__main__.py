"""`make serve`: `python -m serve_app.ops.launch CONFIG`. Runs `serve run CONFIG` as a child until one of the two ends.

Exit status: 0 after Ctrl-C, 1 for a start that failed, otherwise that of `serve run` (128 + N when signal N ended it).
"""

import ctypes
import os
import signal
import subprocess
import sys
import threading
from contextlib import ExitStack, closing
from io import TextIOWrapper
from pathlib import Path
from typing import IO, Any, Final, cast

import yaml

from serve_app.config.environment import LAUNCHER
from serve_app.errors import SophiaError
from serve_app.ops.launch.address import Address, address_of, claim, claim_folder
from serve_app.ops.launch.output import LogFile, Output, show
from serve_app.ops.launch.start_report import StartReport
from serve_app.ops.launch.stop_notice import StopNotice
from serve_app.settings import load_args

_FORWARDED: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_LAST_LINES_S: Final = 2.0
"""How long to wait for the rest of the output of a `serve run` that has ended, in seconds."""

_PR_SET_PDEATHSIG: Final = 1


def main(arguments: list[str]) -> int:
    """Run `serve run CONFIG` until it ends; the exit status."""
    config = Path(arguments[0])
    try:
        args = load_args(config)
        address = address_of(yaml.safe_load(config.read_text()))
        claimed = claim(address, config)
        log = LogFile(args.data_dir / "logs")
        folder = claim_folder(args.data_dir)
    except SophiaError as error:
        show(error.message, sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    if folder is None and args.database_url is None:
        show(
            f"Another 'make serve' uses {args.data_dir}. Both share its jobs, so that the lines below, and /readyz, are about the "
            "workers of both. Set another data_dir to keep them apart.",
            sys.stderr,
        )
    claims = [claimed, folder] if folder else [claimed]
    with ExitStack() as stack:
        stack.enter_context(closing(log))
        for one in claims:
            stack.enter_context(one)
        return _Launch(config, address, [one.fileno() for one in claims], log).run()


class _Launch:
    """One run of `serve run`."""

    def __init__(self, config: Path, address: Address, claim_descriptors: list[int], log: LogFile) -> None:
        self._log = log
        self._output = Output(log)
        show(f"Sophia is starting on {address.url}; Ctrl-C stops it. All output: {log.path}")
        self._stop_notice = StopNotice()
        self._child = _serve_run(config, claim_descriptors, self._stop_notice.name)
        self._report = StartReport(address, self._output, lambda: self._child.send_signal(signal.SIGINT))
        self._was_stopped = False

    def run(self) -> int:
        for number in _FORWARDED:
            signal.signal(number, self._forward)
        reader = threading.Thread(target=self._read, args=(self._child.stdout,), name="output", daemon=True)
        reader.start()
        self._report.start()
        status = self._child.wait()
        self._report.stop()
        reader.join(_LAST_LINES_S)  # a process that outlives `serve run` may hold the pipe open
        return self._end(status if status >= 0 else 128 - status)

    def _read(self, lines: IO[str]) -> None:
        for line in lines:
            self._output.read(line.rstrip("\n"))

    def _forward(self, number: int, _: Any) -> None:
        """Pass a signal on, the first one after all callers who wait for a song have been answered.

        `serve run` has a process group of its own, so the terminal's Ctrl-C reaches only the launcher.
        """
        is_first = not self._was_stopped
        if number == signal.SIGINT and is_first:
            show(
                "Sophia is stopping. Jobs that would run for more than half a minute are stopped, and run again at the next "
                "start. Ctrl-C again stops all of them at once."
            )
        self._was_stopped = True
        self._output.is_stopping = True
        self._report.stop()
        if is_first:
            self._stop_notice.announce()
        self._child.send_signal(number)

    def _end(self, status: int) -> int:
        """Print why Sophia ended, unless the user stopped it; the exit status."""
        if self._was_stopped:
            return status
        if self._report.is_ready:
            show(f"Sophia has ended: 'serve run' exited with status {status}. Its output: {self._log.path}", sys.stderr)
        else:
            reason = self._report.failure or self._output.exception or f"'serve run' exited with status {status}"
            show(f"Sophia did not start: {reason.rstrip('.')}. All output: {self._log.path}", sys.stderr)
        return status or 1  # `serve run` exits with 0 after an unexpected error, too


def _serve_run(config: Path, claim_descriptors: list[int], stop_notice: str) -> "subprocess.Popen[str]":
    """Start `serve run` with its output in a pipe. It inherits the claims, which must last as long as it does.

    Its processes get the name of the notice before a stop.
    """
    serve = Path(sys.executable).with_name("serve")
    return subprocess.Popen(  # noqa: S603 - our own interpreter's command
        [serve, "run", str(config)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding="utf-8",
        errors="replace",
        env={**os.environ, "PYTHONUNBUFFERED": "1", LAUNCHER: stop_notice},
        pass_fds=claim_descriptors,
        process_group=0,
        preexec_fn=_prepare_child,
    )


def _prepare_child() -> None:
    """Runs in the child before `serve run`."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # a shell's background job ignores SIGINT
    # The kernel sends SIGTERM when the launcher dies (prctl(2)), so that a SIGKILL of the launcher leaves no service behind.
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


if __name__ == "__main__":
    # A terminal that cannot show a character must not end the thread that reads the output.
    cast(TextIOWrapper, sys.stdout).reconfigure(errors="backslashreplace")
    sys.exit(main(sys.argv[1:]))
