"""`make faults`: every fault that a review found in the first version, row by row, and whether its tests pass now.

A test covers a row with `@pytest.mark.fault("A1")`; one test may cover several. The letters of the rows: A jobs, breaker and
scaling; B access and denial of service; C faults that callers noticed; E faults that operators noticed.
"""

import sys
from collections import defaultdict
from typing import Final

import pytest

ROWS: Final = {
    "A1": "ending a worker while it loads counted as a crash, and three of them opened the breaker",
    "A2": "one bad host, or a rollout to a missing checkpoint, ended working workers",
    "A3": "a claim was not durable and not fenced by its worker, so two workers could hold one attempt",
    "A4": "a client's priority, or a job that returned to the queue, overtook every other owner's jobs",
    "A5": "two clusters on one queue each scaled for the other's running jobs",
    "A6": "a job of a model that is no longer configured made its owner's list answer 500",
    "A7": "a publication that was acknowledged too late was charged again as wasted",
    "A8": "a client that disconnected during the insert left a job behind",
    "A9": "a worker in another PID namespace was taken for dead",
    "A10": "a database outage during a start discarded the loaded model",
    "A11": "the queue had no limit, and submission, list and position cost more the longer it was",
    "A12": "after a raylet was killed, its processes kept the port and the device and did not answer",
    "B1": "revoking the last key, or a database outage at the start, gave everybody access",
    "B2": "a first deploy with `auth: keys` and no key failed, and stayed failed after a key was made",
    "B3": "with the wrong database address the janitor erased the whole bucket",
    "B4": "a client that did not read made a replica load the whole file into memory",
    "B5": "a PostgreSQL server that stopped answering blocked requests for over a minute",
    "B6": "/ping waited for the database behind a full thread pool",
    "B7": "a body of unknown fields blocked the event loop for seconds and was answered with megabytes",
    "B8": "one key's waiting requests kept a replica from answering others",
    "B9": "eight ports of one host took all of the webhook senders",
    "B10": "a background thread that died was not reported",
    "B11": "addresses, other owners' jobs and money were shown; event streams outlived their key; any Host was accepted",
    "B12": "the cost of skypilot's pods had no limit, and plain HTTP was open to the internet",
    "B13": "a thousand followers of one job used a whole core",
    "B14": "a full disk was reported by neither health nor jobs, but by a log line per second",
    "C1": "ACE-Step's own spellings were refused",
    "C2": "error texts pointed to the wrong field or showed a pattern",
    "C3": "there was no automatic duration",
    "C4": "the variants' defaults were not the original's",
    "C5": "Opus files ended with wrong samples",
    "C6": "MP3 and Opus were encoded more slowly than a GPU generates music",
    "C7": "HEAD, whole ranges, 416, event streams after the end, gzip and Prefer did not follow the standards",
    "C8": "/docs was blank without internet",
    "C9": "seeds overflowed, CRLF changed the song, blank prompts were accepted",
    "C10": "file names were ids, tags had few fields, there was no AAC",
    "C11": "a restart within a minute could not bind its port",
    "C12": "a socket that Ray leaked made another test fail",
    "C13": "`source: auto` was resolved by the local machine",
    "E3": "a hub that answers 429 or 500 opened the breaker",
    "E4": "a worker whose device failed at once claimed every job and failed it",
    "E5": "a missing bucket or a read-only folder stalled the device for an hour while health said ok",
    "E8": "compose.yaml's volumes belonged to root, so its services could not start",
    "E9": "the systemd units could not write to the folder that their example names",
    "E10": "connections that were dropped silently hung for a quarter of an hour",
    "E11": "the NetworkPolicy blocked connections to an external database",
    "E12": "an expired hub token was reported as an unreachable hub",
    "E13": "a gated repository was reported as an unreachable hub, after two minutes",
    "E14": "after a suspension of the machine, running workers lost their attempts",
    "E15": "connections through PgBouncer were refused or led to 503",
    "E16": "a proxy in the environment stopped `serve deploy` to this machine",
    "E17": "misspelt SOPHIA_ variables were ignored",
    "E18": "a password with an @ was shown at /readyz",
    "E19": "the database address's search_path was overwritten",
    "E21": "the firewall was gone after a reboot",
    "E22": "an unchanged deploy did not close the breaker, though the documentation said so",
    "E23": "the guide's connection counts did not fit PostgreSQL's limit",
    "E24": "a disruption budget kept a node with one GPU pod for ever",
    "E25": "the guide did not name the cluster autoscaler's own grace period",
    "E27": "the guide did not say that all machines need one Python patch version",
    "E28": "a joined machine had no database password, and weights were not fetched at boot",
    "E29": "the death of a worker that Ray's memory monitor killed was attributed to the kernel",
    "E31": "the error for a misspelt setting contained its value, which may have a password",
    "E33": "`docker stop` of the plain image did not drain",
    "E34": "the README named neither Ray's token nor RAY_AUTH_MODE",
}
"""What happened in f09e160. Rows 1, 2, 6, 7 and 10 of E are A9, A2, A6, B12 and B5."""


class Report:
    """A pytest plugin that prints the table of rows at the end of a run."""

    def __init__(self) -> None:
        self._rows: dict[str, set[str]] = {}
        self._outcomes: dict[str, dict[str, str]] = defaultdict(dict)

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        """Records which test shows which rows."""
        for item in items:
            self._rows[item.nodeid] = {row for mark in item.iter_markers("fault") for row in mark.args}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Records how each test ended; a failed set-up or clean-up is a failure too."""
        if report.when != "call" and report.passed:
            return
        for row in self._rows.get(report.nodeid, ()):
            self._outcomes[row][report.nodeid] = report.outcome

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        """Prints one line for each row."""
        terminalreporter.section("faults of the first version")
        for row, was in ROWS.items():
            terminalreporter.write_line(f"{row:>4}  {self._now(row):<28} was: {was}")

    def _now(self, row: str) -> str:
        outcomes = list(self._outcomes[row].values())
        if not outcomes:
            return "NO TEST"
        for bad in ("failed", "skipped"):
            if bad in outcomes:
                return f"{bad.upper()} ({outcomes.count(bad)} of {len(outcomes)} tests)"
        return f"mended ({len(outcomes)} tests)"


def main() -> int:
    """Runs every test of a row; further arguments go to pytest."""
    return int(pytest.main(["-m", "fault", "-q", *sys.argv[1:]], plugins=[Report()]))


if __name__ == "__main__":
    sys.exit(main())
