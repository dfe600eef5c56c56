"""The program `sophia-client`: songs from a shell."""

import argparse
import json
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

from sophia_client.answers import Job
from sophia_client.errors import ApiError, SophiaError
from sophia_client.retries import Retries
from sophia_client.sync.client import Client
from sophia_client.version import VERSION

_ADDRESS: Final = "http://localhost:8000"
_PATIENCE_S: Final = 60.0
_DESCRIPTION: Final = f"""\
Make songs with a Sophia service. SOPHIA_URL has its address (without it {_ADDRESS}), SOPHIA_KEY the API key if it needs one.
Exit status: 0 success, 1 the service refused or a job has no song, 2 the command line is wrong."""


def main(words: Sequence[str] | None = None) -> int:
    """Run one command and return the exit status, which --help states."""
    given = _parser().parse_args(words)
    action: Callable[[Client, argparse.Namespace], None] = given.action
    url = given.url or os.environ.get("SOPHIA_URL", _ADDRESS)
    try:
        client = Client(url, os.environ.get("SOPHIA_KEY"), retries=Retries(_PATIENCE_S, _tell_retry))
    except ValueError as error:
        return _told(str(error), 2)
    try:
        with client:
            action(client, given)
    except ApiError as error:
        return _told(f"{error.detail or error.title} [{error.code or error.status}]", 1)
    except (SophiaError, OSError) as error:
        return _told(str(error), 1)
    except KeyboardInterrupt:
        return _told("stopped; the service goes on with what was submitted", 130)
    return 0


def _told(text: str, status: int) -> int:
    print(f"sophia-client: {text}", file=sys.stderr)
    return status


def _tell_retry(error: SophiaError, pause_s: float) -> None:
    print(f"sophia-client: {error}; trying again in {pause_s:.1f} s", file=sys.stderr)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("sophia-client", description=_DESCRIPTION)
    parser.add_argument("--version", action="version", version=VERSION)
    parser.add_argument("--url", help="the service's address, instead of SOPHIA_URL")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    song = _command(commands, "song", _song, "make a song and download it")
    song.add_argument("prompt", help="what it sounds like, in words")
    song.add_argument("--lyrics", type=Path, metavar="FILE", help="a text file with its lyrics")
    song.add_argument("--source", metavar="FILE|NAME", help="what it is made from: a file, input:ID or job:ID/N")
    song.add_argument("--reference", metavar="FILE|NAME", help="whose sound it imitates: a file, input:ID or job:ID/N")
    _add_song_options(song)

    extend = _command(commands, "extend", _extend, "make a longer version of a song and download it")
    extend.add_argument("song", metavar="JOB[/N]", help="the job, and which of its songs, from 0")
    extend.add_argument("--after", type=float, default=0.0, metavar="SECONDS", help="how much is added at its end")
    extend.add_argument("--before", type=float, default=0.0, metavar="SECONDS", help="how much is added at its start")
    _add_song_options(extend)

    jobs = _command(commands, "jobs", _jobs, "list your jobs, newest first")
    jobs.add_argument("--state", help="only jobs in this state, such as queued")
    jobs.add_argument("--limit", type=int, default=20, metavar="N", help="how many (default: 20)")

    _job_command(commands, "job", _job, "print a job as JSON")
    _job_command(commands, "cancel", _cancel, "cancel a job")
    _job_command(commands, "retry", _retry, "put a failed, cancelled or expired job back into the queue")
    _job_command(commands, "delete", _delete, "delete a job and its songs")
    download = _job_command(commands, "download", _download, "wait for a job and download its songs")
    _add_output(download)

    upload = _command(commands, "upload", _upload, "upload a recording and print its name for --source and --reference")
    upload.add_argument("file", type=Path)
    _command(commands, "models", _models, "list the models and their tasks")
    return parser


def _command(
    commands: Any, name: str, action: Callable[[Client, argparse.Namespace], None], text: str
) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = commands.add_parser(name, help=text, description=f"{text[0].upper()}{text[1:]}.")
    parser.set_defaults(action=action)
    return parser


def _job_command(
    commands: Any, name: str, action: Callable[[Client, argparse.Namespace], None], text: str
) -> argparse.ArgumentParser:
    parser = _command(commands, name, action, text)
    parser.add_argument("job", metavar="JOB", help="the job's id")
    return parser


def _add_song_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        type=_field,
        metavar="FIELD=VALUE",
        help="another field of the song, such as duration=30 or format=flac; may be given several times",
    )
    parser.add_argument("--once", metavar="KEY", help="an idempotency key: the same command again makes no second song")
    parser.add_argument("--no-wait", action="store_true", help="only submit the song, and print the job's id")
    _add_output(parser)


def _add_output(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "-o",
        "--output",
        type=Path,
        default=Path(),
        metavar="PATH",
        help="a file for one song, or a folder (default: here)",
    )


def _field(text: str) -> tuple[str, Any]:
    """A field and its value, which is JSON if it can be and text otherwise."""
    name, equals, value = text.partition("=")
    if not (name and equals):
        raise argparse.ArgumentTypeError(f"must be FIELD=VALUE, got {text!r}")
    try:
        return name, json.loads(value)
    except ValueError:
        return name, value


def _song(client: Client, given: argparse.Namespace) -> None:
    fields: dict[str, Any] = dict(given.set)
    if given.lyrics:
        fields["lyrics"] = given.lyrics.read_text()
    for name in ("source", "reference"):
        value = getattr(given, name)
        if value:
            fields[name] = value if value.startswith(("input:", "job:", "https:", "http:")) else Path(value)
    _finish(client, given, client.submit(given.prompt, idempotency_key=given.once, **fields))


def _extend(client: Client, given: argparse.Namespace) -> None:
    job, _, number = given.song.removeprefix("job:").partition("/")
    if number and not number.isdecimal():
        raise SophiaError(f"JOB[/N]: N must be the number of a song, from 0, got {number!r}")
    fields: dict[str, Any] = dict(given.set)
    longer = client.extend(
        job, after_s=given.after, before_s=given.before, index=int(number or 0), idempotency_key=given.once, **fields
    )
    _finish(client, given, longer)


def _finish(client: Client, given: argparse.Namespace, job: Job) -> None:
    """Print the job's id; wait for its songs and download them unless --no-wait is given."""
    if given.no_wait:
        print(job.id)
        return
    print(f"job {job.id}", file=sys.stderr)
    _save(client, job, given.output)


def _save(client: Client, job: Job | str, output: Path) -> None:
    """Wait for the job, download its songs, and print their files."""
    ended = client.wait(job, on_change=_show if sys.stderr.isatty() else None)
    for warning in ended.warnings:
        print(f"sophia-client: {warning}", file=sys.stderr)
    if len(ended.audio) > 1 and not output.is_dir():
        raise SophiaError(
            f"Job {ended.id} has {len(ended.audio)} songs: --output must be an existing folder, got {output}"
        )
    for index in range(len(ended.audio)):
        print(client.download(ended, output, index=index))


def _show(job: Job) -> None:
    """Write the job's progress over the line before it."""
    text = f"{job.progress.stage} {job.progress.fraction:.0%}" if job.progress else job.waiting_for or job.state
    print(f"\r\x1b[K{text}", end="\n" if job.has_ended else "", file=sys.stderr, flush=True)


def _jobs(client: Client, given: argparse.Namespace) -> None:
    for number, job in enumerate(client.jobs(state=given.state)):
        if number == given.limit:
            return
        print(f"{job.id}\t{job.state}\t{job.created_at:%Y-%m-%dT%H:%M:%SZ}\t{job.request.get('prompt', '')[:60]}")


def _job(client: Client, given: argparse.Namespace) -> None:
    print(client.job(given.job).model_dump_json(indent=2))


def _cancel(client: Client, given: argparse.Namespace) -> None:
    print(client.cancel(given.job).state)


def _retry(client: Client, given: argparse.Namespace) -> None:
    print(client.retry(given.job).state)


def _delete(client: Client, given: argparse.Namespace) -> None:
    client.delete(given.job)


def _download(client: Client, given: argparse.Namespace) -> None:
    _save(client, given.job, given.output)


def _upload(client: Client, given: argparse.Namespace) -> None:
    print(client.upload(given.file).name)


def _models(client: Client, given: argparse.Namespace) -> None:  # noqa: ARG001 - every action has this signature
    for model in client.models().models:
        print(f"{model.name}\t{model.variant or '-'}\t{', '.join(model.tasks)}\t{model.note or ''}")


if __name__ == "__main__":
    sys.exit(main())
