"""The HTTP side: API processes, limits for callers, and who may call."""

from typing import Annotated, Final, Literal

from pydantic import Field, StringConstraints

from serve_app.config.section import Section

_ORIGIN: Final = r"^(\*|https?://[A-Za-z0-9.\-\[\]:]{1,260})$"
"""An origin as browsers send it: scheme, host and port, without a path."""


class ApiArgs(Section):
    """API processes and the limits that they apply to callers."""

    replicas: int = Field(1, ge=1, description="The number of API processes.")
    num_cpus: float = Field(0.1, gt=0, description="Ray CPUs that an API process reserves.")
    threads: int = Field(
        16,
        ge=1,
        le=256,
        description="Threads of an API process for database calls. Further calls wait for a free thread.",
    )
    ready_timeout_s: float = Field(
        3, gt=0, le=60, description="Seconds without an answer from the database after which `/readyz` answers 503."
    )
    max_ongoing: int = Field(
        2000,
        ge=20,
        le=10_000,
        description="The most requests that an API process handles at once; further ones get 429. Requests that wait for a song "
        "or follow events may take 70 % of these places, and 10 % are reserved for probes.",
    )
    waits_per_key: int = Field(
        500,
        ge=1,
        description="The most requests of one API key that wait for a song at once (`/v1/music`, `Prefer: wait`); further ones "
        "get 429.",
    )
    leave_grace_s: float = Field(
        15,
        ge=0,
        le=3600,
        description="Seconds after which a job is cancelled whose waiting caller has left (`/v1/music`). If the same API key sends "
        "the same request before, it waits for the same job: clients that repeat a request on their own make no second song.",
    )
    streams_per_key: int = Field(
        1000, ge=1, description="The most event streams of one API key at once; further ones get 429."
    )
    download_bytes: int = Field(
        2_000_000_000,
        ge=1,
        description="The most bytes of files that an API process has in transfer at once; a further download gets 429. Serve "
        "buffers what clients have not read yet, in memory and then on disk. A single file is always allowed.",
    )
    download_bytes_per_key: int = Field(
        500_000_000,
        ge=1,
        description="The part of `download_bytes` that one API key may use. A single file is always allowed; a zip file of a job's "
        "files may have this size at most.",
    )
    requests_per_s: float = Field(
        200, gt=0, description="The most requests per second of one API key on average; further ones get 429."
    )
    request_burst: int = Field(2000, ge=1, description="Requests that an API key may make at once after a pause.")
    allowed_hosts: list[str] = Field(
        [],
        description="Host names, besides this machine's own, under which Sophia answers while no API key is needed. Where keys "
        "are needed, it answers under every name.",
    )
    cors_origins: list[Annotated[str, StringConstraints(pattern=_ORIGIN)]] = Field(
        [],
        description="Sites whose pages may call Sophia from a browser, such as `https://app.example.com`. `*` stands for all "
        "sites, but only where an API key is needed.",
    )
    link_ttl_s: float = Field(
        3600,
        ge=1,
        le=604_800,
        description="The longest time in seconds for which a signed link (`/v1/jobs/{id}/links`) opens a job's songs and events "
        "without an API key.",
    )
    compat: list[str] | None = Field(
        None,
        description="The APIs of other services that Sophia serves, by the names in docs/CLIENTS.md. `[]` serves none; without "
        "this setting, all are served.",
    )
    runpod_endpoints: dict[str, str] = Field(
        {},
        description="For clients of RunPod, the endpoint ids that they use and the model that serves each. A model's name is "
        "always an endpoint id.",
    )
    max_body_bytes: int = Field(
        1_048_576, ge=1024, description="The largest request body in bytes; a larger one gets 413."
    )
    body_timeout_s: float = Field(
        30, gt=0, le=600, description="Seconds within which a request's body must arrive; a slower one gets 408."
    )


class AuthArgs(Section):
    """Who may call the API, and who sees everything in `/v1/health`."""

    mode: Literal["auto", "keys", "none"] = Field(
        "auto",
        description="`keys`: every call needs an API key. `none`: no call needs one, whatever address Sophia listens on. `auto`: "
        "beyond loopback addresses every call needs a key; on loopback calls need one as soon as a key exists.",
    )
    operators: list[str] = Field(
        [],
        description="Names of the API keys that see everything in `/v1/health`, including other keys' job ids and what songs "
        "cost. If there is only one key, it sees everything too.",
    )
