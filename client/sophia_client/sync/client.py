# `python -m tests.support.sync_client` writes this file from sophia_client/aio/client.py.
"""The client that blocks."""

import ssl
import uuid
from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self, Unpack

from sophia_client.answers import (
    Health,
    Input,
    InputList,
    Job,
    JobCodes,
    JobList,
    Lyrics,
    ModelList,
    Plan,
    SignedLinks,
    Usage,
    Voice,
    VoiceList,
)
from sophia_client.calls import Call, parsed, path_of
from sophia_client.errors import Conflict, JobFailed, NotFound
from sophia_client.requests import audio_of, extension, id_of, paths_in
from sophia_client.retries import Retries
from sophia_client.song_fields import SongFields
from sophia_client.sync.downloads import OnBytes, download
from sophia_client.sync.following import Follower
from sophia_client.sync.runtime import in_thread
from sophia_client.sync.transport import Transport

_PLANNING_S: Final = 3660.0
"""How long a plan may take that has no `deadline_s`: the service's usual deadline, and a minute for its answer."""

OnChange = Callable[[Job], None]
"""Is called with the job at each change of its state or progress."""


class Client:
    """A client of one service, that blocks. Use it in `with`, or call `close`.

    `url` is the service's address, such as https://music.example.com. `key` is an API key, if the service asks for one. `timeout_s`
    is the longest time without any byte from the service. `tls` trusts other certificates than the usual ones.

    Calls that fail because of a lost connection or a limit are repeated, as `retries` says; none of them makes a second song.
    Every method raises the subclasses of ApiError that fit the service's answer, and ConnectionLost.
    """

    def __init__(
        self,
        url: str,
        key: str | None = None,
        *,
        timeout_s: float = 60.0,
        retries: Retries | None = None,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        """Raises ValueError for a URL or key that cannot be one."""
        self._transport = Transport(url, key, timeout_s=timeout_s, retries=retries or Retries(), tls=tls)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._transport.close()

    # --- Jobs ---------------------------------------------------------------------------------------------------------

    def submit(self, prompt: str, *, idempotency_key: str | None = None, **fields: Unpack[SongFields]) -> Job:
        """Add a song to the queue. Returns the job, which the service cannot lose any more.

        `source` and `reference` may be paths of files, which are uploaded first. Every submission has an idempotency key, so that
        repeating it after a lost connection makes no second song. Give one of your own to repeat it in another process.
        """
        given = self._uploaded({"prompt": prompt, **fields})
        headers = {"Idempotency-Key": idempotency_key or str(uuid.uuid4())}
        return parsed(Job, self._transport.send(Call("POST", path_of("jobs"), json=given, headers=headers)))

    def _uploaded(self, fields: dict[str, Any]) -> dict[str, Any]:
        """The fields with the names of recordings in place of paths. The files are uploaded."""
        return fields | {name: (self.upload(path)).name for name, path in paths_in(fields).items()}

    def make(
        self,
        prompt: str,
        *,
        idempotency_key: str | None = None,
        on_change: OnChange | None = None,
        **fields: Unpack[SongFields],
    ) -> Job:
        """Submit a song and wait for it. Raises JobFailed."""
        job = self.submit(prompt, idempotency_key=idempotency_key, **fields)
        return self.wait(job, on_change=on_change)

    def extend(
        self,
        job: Job | str,
        *,
        after_s: float = 0.0,
        before_s: float = 0.0,
        index: int = 0,
        idempotency_key: str | None = None,
        **fields: Unpack[SongFields],
    ) -> Job:
        """Submit a song that goes on for `after_s` seconds behind song `index` of a job, and begins `before_s` seconds earlier.

        Prompt, lyrics, key, tempo and the like are the earlier song's unless `fields` has others.
        """
        earlier = job if isinstance(job, Job) else self.job(job)
        longer: dict[str, Any] = {**extension(earlier, index, before_s, after_s), **fields}
        return self.submit(**longer, idempotency_key=idempotency_key)

    def wait(self, job: Job | str, *, timeout_s: float | None = None, on_change: OnChange | None = None) -> Job:
        """The finished job. Raises JobFailed if it has no song, and WaitTimeout if it did not end within `timeout_s` seconds."""
        latest: Job | None = None
        with closing(self.follow(job, timeout_s=timeout_s)) as versions:
            for latest in versions:
                if on_change is not None:
                    on_change(latest)
        assert latest is not None  # noqa: S101 - `follow` ends only after an ended job
        if latest.state != "succeeded":
            raise JobFailed(latest)
        return latest

    def follow(self, job: Job | str, *, timeout_s: float | None = None) -> Generator[Job, None, None]:
        """Yields the job as it is now, then at each change of its state or progress, until it has ended.

        Lost connections are made again. Raises WaitTimeout, and NotFound if the job is deleted.
        """
        return Follower(self._transport, id_of(job), timeout_s).versions()

    def job(self, job: Job | str) -> Job:
        """The job as it is now."""
        return parsed(Job, self._transport.send(Call("GET", path_of("jobs", id_of(job)))))

    def jobs(self, *, state: str | None = None, model: str | None = None) -> Iterator[Job]:
        """Yield your jobs, newest first; with `state` or `model` only those in this state or of this model."""
        wanted = {name: value for name, value in (("state", state), ("model", model)) if value is not None}
        cursor: dict[str, str] | None = {}
        while cursor is not None:
            page = parsed(JobList, self._transport.send(Call("GET", path_of("jobs"), params=wanted | cursor)))
            yield from page.jobs
            cursor = {"cursor": page.next_cursor} if page.next_cursor else None

    def cancel(self, job: Job | str) -> Job:
        """Cancel a queued or running job. Raises Conflict if it has ended."""
        return self._move(job, "cancel", ("cancelled",))

    def retry(self, job: Job | str) -> Job:
        """Put a failed, cancelled or expired job back into the queue. Raises Conflict if it is in another state."""
        return self._move(job, "retry", ("queued", "running"))

    def _move(self, job: Job | str, action: str, states: tuple[str, ...]) -> Job:
        """Move the job to one of `states`. If an earlier try may have done it, a Conflict with the result is none."""
        try:
            return parsed(Job, self._transport.send(Call("POST", path_of("jobs", id_of(job), action))))
        except Conflict as error:
            if not error.may_have_worked:
                raise
            found = self.job(job)
            if found.state not in states:
                raise
            return found

    def delete(self, job: Job | str) -> None:
        """Delete a job in any state, and its songs."""
        self._delete(path_of("jobs", id_of(job)))

    def _delete(self, path: str) -> None:
        try:
            self._transport.send(Call("DELETE", path))
        except NotFound as error:
            if not error.may_have_worked:
                raise

    # --- Songs --------------------------------------------------------------------------------------------------------

    def download(self, job: Job, path: Path | str, *, index: int = 0, on_bytes: OnBytes | None = None) -> Path:
        """Download song `index` of a job to a file, or into a folder under the name `ID-INDEX.FORMAT`. Returns the file.

        A broken download goes on where it was, also a later one to the same path. The file is complete when it has its name.
        Raises DamagedDownload, OSError, and ValueError if the job has no such song.
        """
        file = audio_of(job, index)
        destination = Path(path)
        if in_thread(destination.is_dir):
            destination /= f"{job.id}-{index}.{file.format}"
        download(self._transport, file, destination, on_bytes)
        return destination

    def download_all(self, job: Job, folder: Path | str, *, on_bytes: OnBytes | None = None) -> list[Path]:
        """Download all songs of a job into a folder, which is made if need be. Raises what `download` does."""
        in_thread(Path(folder).mkdir, parents=True, exist_ok=True)
        return [self.download(job, folder, index=index, on_bytes=on_bytes) for index in range(len(job.audio))]

    def read(self, job: Job, *, index: int = 0) -> bytes:
        """The content of a song's file. Raises ValueError if the job has no such song."""
        return (self._transport.send(Call("GET", audio_of(job, index).url))).content

    def links(self, job: Job | str, *, seconds: float | None = None) -> SignedLinks:
        """Paths of a job's songs and events that open without an API key, for `seconds` or as long as the service allows."""
        params = {} if seconds is None else {"seconds": seconds}
        return parsed(
            SignedLinks, self._transport.send(Call("GET", path_of("jobs", id_of(job), "links"), params=params))
        )

    def lyrics(self, job: Job | str, *, index: int = 0) -> Lyrics:
        """When each line and word of a song is sung, if its request had `lyrics_timing`."""
        return parsed(Lyrics, self._transport.send(Call("GET", path_of("jobs", id_of(job), "lyrics", str(index)))))

    def codes(self, job: Job | str) -> JobCodes:
        """The audio codes of a job's songs, for a request's `audio_codes`."""
        return parsed(JobCodes, self._transport.send(Call("GET", path_of("jobs", id_of(job), "codes"))))

    # --- Plans --------------------------------------------------------------------------------------------------------

    def plan(self, prompt: str, **fields: Unpack[SongFields]) -> Plan:
        """The plan that `submit` with the same fields and seeds would get, without a song. Returns when it is made.

        `plan=plan.given()` in `submit` then makes its song.
        """
        return self._planned("plan", {"prompt": prompt, **fields})

    def format(self, prompt: str, **fields: Unpack[SongFields]) -> Plan:
        """Caption, lyrics and metadata, written anew from `prompt` and `lyrics`, without audio codes."""
        return self._planned("format", {"prompt": prompt, **fields})

    def sample(self, description: str, **fields: Unpack[SongFields]) -> Plan:
        """Caption, lyrics and metadata of a song that fits a description in plain words, without audio codes."""
        return self._planned("sample", {"prompt": description, **fields})

    def understand(
        self,
        source: Path | str | None = None,
        *,
        audio_codes: list[int] | None = None,
        model: str | None = None,
        deadline_s: float | None = None,
    ) -> Plan:
        """Caption, lyrics and metadata of a song: `source` names one (`job.song(0)`) or is a file's path, or `audio_codes`."""
        named = {"source": source, "audio_codes": audio_codes, "model": model, "deadline_s": deadline_s}
        return self._planned("understand", {name: value for name, value in named.items() if value is not None})

    def plan_of(self, job: Job | str) -> Plan:
        """The plan of a job, with its audio codes. Raises NotFound if it has none, and Conflict until it is made."""
        return parsed(Plan, self._transport.send(Call("GET", path_of("jobs", id_of(job), "plan"))))

    def _planned(self, route: str, fields: dict[str, Any]) -> Plan:
        silence_s = float(fields.get("deadline_s") or _PLANNING_S)
        given = self._uploaded(fields)
        return parsed(Plan, self._transport.send(Call("POST", path_of(route), json=given, silence_s=silence_s)))

    # --- Recordings ---------------------------------------------------------------------------------------------------

    def upload(self, recording: Path | str | bytes) -> Input:
        """Upload a file, given by its path or content. Its `name` is the value for a request's `source` or `reference`.

        The same file has the same name. Raises InvalidRequest if it cannot be used, and OSError.
        """
        body = recording if isinstance(recording, bytes) else Path(recording)
        headers = {"Content-Type": "application/octet-stream"}
        return parsed(Input, self._transport.send(Call("POST", path_of("inputs"), body=body, headers=headers)))

    def inputs(self) -> Iterator[Input]:
        """Yield your uploaded recordings, newest first."""
        cursor: dict[str, str] | None = {}
        while cursor is not None:
            page = parsed(InputList, self._transport.send(Call("GET", path_of("inputs"), params=cursor)))
            yield from page.inputs
            cursor = {"cursor": page.next_cursor} if page.next_cursor else None

    def delete_input(self, recording: Input | str) -> None:
        """Delete a recording, given by what `upload` returned, its name or its id. Raises Conflict while it is needed."""
        name = recording.id if isinstance(recording, Input) else recording.removeprefix("input:")
        self._delete(path_of("inputs", name))

    def set_voice(self, name: str, source: Path | str) -> Voice:
        """Give a name to a recording: a file's path, or the name of an input or song. Requests then have it in `voice`."""
        given = {"name": name, "source": (self.upload(source)).name if isinstance(source, Path) else source}
        return parsed(Voice, self._transport.send(Call("POST", path_of("voices"), json=given)))

    def voices(self) -> list[Voice]:
        """Your voices, by name."""
        return parsed(VoiceList, self._transport.send(Call("GET", path_of("voices")))).voices

    def delete_voice(self, name: str) -> None:
        """Delete a voice."""
        self._delete(path_of("voices", name))

    # --- The service --------------------------------------------------------------------------------------------------

    def models(self) -> ModelList:
        """The models and what they can do."""
        return parsed(ModelList, self._transport.send(Call("GET", path_of("models"))))

    def usage(self) -> Usage:
        """What your API key has queued, and its limits."""
        return parsed(Usage, self._transport.send(Call("GET", path_of("usage"))))

    def health(self) -> Health:
        """The state of the whole service."""
        return parsed(Health, self._transport.send(Call("GET", path_of("health"))))
