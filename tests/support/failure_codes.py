"""docs/FAILURES.md: the table of every failure code, made by the tests that provoke the failures.

A test that has provoked one calls `provoked(...)`. With SOPHIA_WRITE_DOCS=1 that writes its row; without, it compares the
committed row with what was said now, numbers aside. Rows of tests that are gone go with the file: delete it and write it anew.
"""

import os
import re
from dataclasses import dataclass
from typing import Final

from serve_app import errors
from tests.support.paths import ROOT

FILE: Final = ROOT / "docs" / "FAILURES.md"
WRITING: Final = os.environ.get("SOPHIA_WRITE_DOCS") == "1"

ADVICE: Final[dict[str, str]] = {
    "internal_error": "Report it with the request id; the log has the traceback under that id.",
    "invalid_request": "Correct the field that `errors` names.",
    "malformed_body": "Send the body as JSON.",
    "unauthorized": "Send `Authorization: Bearer KEY`; `sophia keys create NAME` makes one.",
    "wrong_host": "Make an API key, or name the host in `api.allowed_hosts`.",
    "cross_site": "Make an API key and send it, or ask from a page of Sophia's own address.",
    "bad_request": "Send a request that HTTP allows.",
    "not_found": "Check the address; finished jobs are forgotten after their time.",
    "audio_expired": "Run the job again; `retention.results_s` says how long audio is kept.",
    "method_not_allowed": "Use a method that `Allow` names.",
    "conflict": "Look at the job's state first.",
    "idempotency_conflict": "Take a new Idempotency-Key for a new request.",
    "body_too_slow": "Send the body at once, or raise `api.body_timeout_s`.",
    "body_too_large": "Send less, or raise `api.max_body_bytes`.",
    "unsupported_media_type": "Send `content-type: application/json`.",
    "range_not_satisfiable": "Ask for a range inside the file's length.",
    "too_many_requests": "Wait for `Retry-After`, or ask the operator for a higher limit; the message names the setting.",
    "quota_exceeded": "Wait for what you have queued, or cancel some of it; the operator may raise the limit that is named.",
    "queue_full": "Try again after `Retry-After`; the operator may add workers, or raise `queue.max_jobs`.",
    "store_unavailable": "Try again after `Retry-After`; look after the database if it stays.",
    "database_too_new": "Run the newer version, or restore the backup that was made before its first start.",
    "artifacts_unavailable": "Try again; look after the bucket, its credentials or the disk if it stays.",
    "configuration_error": "Correct the setting that the message names.",
    "auth_not_configured": "Make a key, listen on 127.0.0.1, or set `auth: {mode: none}`.",
    "load_failed": "Read the traceback in the worker's log; report it if it is not your own change.",
    "missing_file": "Fetch or copy the checkpoint again; files that are whole are kept.",
    "corrupt_file": "Delete the named file and fetch or copy it again; `sophia weights verify` finds every such file.",
    "wrong_layout": "Use a repository whose name ends in -diffusers, or convert the checkpoint.",
    "wrong_class": "Name an ACE-Step 1.5 checkpoint in `source`.",
    "unknown_repository": "Check `source`; set HF_TOKEN (or the bucket's credentials) where it is private.",
    "unknown_revision": "Give a commit, tag or branch that the repository has.",
    "hub_token_refused": "Make a new HF_TOKEN for every worker's node, or remove it for a public repository.",
    "hub_unreachable": "Check the node's network and HF_ENDPOINT, or run `sophia weights pull` where there is one.",
    "disk_full": "Make room, or move `data_dir`; what was fetched is kept.",
    "device_unavailable": "Run the model on a node with a GPU and its driver, or set `device: cpu`.",
    "device_memory": "End what else runs on the device, or take a smaller model.",
    "package_missing": "Install the named package on every node (the image has it).",
    "package_mismatch": "Do what the message says: upgrade the named package, or remove it where Sophia does not need it.",
    "self_test_failed": "Fetch the checkpoint again; with bfloat16, try `dtype: float32`.",
    "load_crashed": "Give the node more memory if Ray's memory monitor (`ray logs raylet.out`) or the kernel (`dmesg`) ended it; "
    "else look for a fault in a driver.",
    "generation_failed": "Read the traceback in the worker's log; retry the job once the cause is gone.",
    "bad_audio": "Try another seed.",
    "encoding_failed": "Ask for another format; the worker's log has the cause. When it comes again, report it with the request.",
    "out_of_device_memory": "Ask for fewer variations or a shorter duration.",
    "worker_lost": "Retry the job; look at the workers' last errors in `/v1/health`.",
    "device_lost": "Nothing: the job runs again elsewhere. Look after the GPU if it repeats (`nvidia-smi`, `dmesg`).",
    "run_limit_exceeded": "Ask for less, or raise `queue.run_limit_s`.",
    "deadline_exceeded": "Give it a longer `deadline_s`, or add workers.",
}
"""What to do, by code."""

_HEAD: Final = """# Failure codes

Every `code` that Sophia gives: in an HTTP error, in a job's `error`, in a worker's `error` in `/v1/health`, from `sophia doctor`.
HTTP is the status of an answer with this code, where there is one; "again" says whether trying the same again can help. The
messages are what Sophia really said when the tests broke it that way (`SOPHIA_WRITE_DOCS=1 make test` writes this file).

| code | HTTP | again | phase | when | what it says | what to do |
|---|---|---|---|---|---|---|
"""


@dataclass(frozen=True)
class Row:
    """One line of the table: a code, and one way to get it."""

    code: str
    phase: str
    when: str
    message: str

    @property
    def text(self) -> str:
        """The line."""
        kind = kinds()[self.code]
        status = str(kind.status) if kind.status != 500 or self.code == "internal_error" else "–"
        again = "yes" if kind.retryable else "no"
        cells = [f"`{self.code}`", status, again, self.phase or "–", self.when, self.message, ADVICE.get(self.code, "")]
        return f"| {' | '.join(cell.replace('|', '¦') for cell in cells)} |\n"


def kinds() -> dict[str, type[errors.SophiaError]]:
    """Every error class by its code, in the order of errors.py."""
    classes = [kind for kind in vars(errors).values() if isinstance(kind, type)]
    return {kind.code: kind for kind in classes if issubclass(kind, errors.SophiaError)}


def provoked(code: str, when: str, message: str, phase: str = "") -> None:
    """A test made this failure for real. `when` tells in a few words how, and with `code` is the row's key."""
    row = Row(code, phase, when, _shortened(message))
    committed = {(known.code, known.when): known for known in rows()}
    if WRITING:
        _write({**committed, (code, when): row})
        return
    assert (code, when) in committed, f"{FILE.name} has no row {code!r}, {when!r}: run with SOPHIA_WRITE_DOCS=1"
    assert _comparable(committed[code, when]) == _comparable(row), f"{FILE.name} is old: run with SOPHIA_WRITE_DOCS=1"


def rows() -> list[Row]:
    """The rows that the file has."""
    lines = FILE.read_text().splitlines() if FILE.exists() else []
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("| `")]
    return [Row(cell[0].strip("`"), cell[3].replace("–", ""), cell[4], cell[5]) for cell in cells]


def _write(table: dict[tuple[str, str], Row]) -> None:
    codes = list(kinds())
    shown = [row for row in table.values() if row.when]
    missing = [Row(code, "", "", kinds()[code].title) for code in codes if code not in {row.code for row in shown}]
    ordered = sorted([*shown, *missing], key=lambda row: (codes.index(row.code), row.phase, row.when))
    FILE.parent.mkdir(exist_ok=True)
    FILE.write_text(_HEAD + "".join(row.text for row in ordered))


def _shortened(message: str) -> str:
    """Without what differs from machine to machine: folders, ports, the rest of a hash."""
    message = re.sub(r"(?<![\w:/.])(?:/[^\s/:,;)']+)+/([^\s/:,;)']+/[^\s/:,;)']+)", r"…/\1", message)
    message = re.sub(r"…/test_\w+/", "…/", message)
    message = re.sub(r"127\.0\.0\.1:\d+", "127.0.0.1", message)
    return re.sub(r"\b([0-9a-f]{8})[0-9a-f]{4,}\b", r"\1…", message)


def _comparable(row: Row) -> tuple[str, ...]:
    words = re.sub(r"…/\S+", "PATH", row.message.replace("|", "¦"))
    return row.code, row.phase, row.when, re.sub(r"\b[0-9a-f]{8}…|\d[\d.]*", "N", words)
