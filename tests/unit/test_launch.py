"""What `make serve` prints: the lines of `serve run` that it shows, and its report on the start."""

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from ray.serve.schema import HTTPOptionsSchema

from serve_app.errors import ConfigurationError
from serve_app.ops.launch import __main__ as launcher
from serve_app.ops.launch.address import Address, address_of, claim_folder
from serve_app.ops.launch.output import LogFile, Output, record
from serve_app.ops.launch.start_report import failed_models, ready_lines
from tests.support.helpers import free_port
from tests.support.serve_run import configure

SERVE = "2026-11-26 08:35:26,340 sophia_Api coabkx6w"
WORKER = "worker 01a216fe-8a78-7ab0-906c-49e90670a148 cannot load ace-step"

CHATTER = [
    "2026-11-26 08:34:14,095\tINFO scripts.py:489 -- Running config file: 'serve_config.yaml'.",
    "2026-11-26 08:34:46,499\tINFO worker.py:2029 -- Started a local Ray instance. "
    "View the dashboard at \x1b[1m\x1b[32mhttp://127.0.0.1:8266 \x1b[39m\x1b[22m",
    f"\x1b[36m(ServeController pid=21764)\x1b[0m INFO {SERVE} -- Importing and building app 'sophia'.",
    f"\x1b[36m(ServeReplica:sophia:Api pid=22113)\x1b[0m INFO {SERVE} e87c49e1 -- GET /v1/health 200 58.8ms",
    "[2026-11-26 08:34:14,151 W 20831 20831] network_util.cc:330: Failed to determine local IP via external connectivity",
    "2026-11-26 08:34:14,150\tWARNING authentication_token_setup.py:85 -- Token authentication is enabled for this Ray cluster.",
]
"""Lines of a good start, as Ray 2.60 prints them."""


def test_a_second_launcher_in_the_same_folder_is_noticed(tmp_path: Path) -> None:
    """By the folder itself, whatever its path, for as long as the first one runs."""
    folder = tmp_path / ("x" * 200)
    folder.mkdir()
    (tmp_path / "link").symlink_to(folder)
    first = claim_folder(folder)
    assert first is not None

    assert claim_folder(tmp_path / "link") is None

    first.close()
    again = claim_folder(folder)
    assert again is not None
    again.close()


def test_the_user_is_told_that_two_launchers_share_a_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The start goes on, since they may; only the second launcher prints the sentence."""
    monkeypatch.setattr(launcher, "_Launch", Ended)
    configure(tmp_path, free_port())
    config = [str(tmp_path / "serve_config.yaml")]

    assert launcher.main(config) == 0
    alone = capsys.readouterr().err
    other = claim_folder(tmp_path)
    assert other is not None
    with other:
        assert launcher.main(config) == 0

    assert alone == ""
    assert capsys.readouterr().err.startswith(f"Another 'make serve' uses {tmp_path}. Both share its jobs")


class Ended:
    """A launch that ends at once."""

    def __init__(self, *_: Any) -> None: ...

    def run(self) -> int:
        return 0


@pytest.fixture
def output(tmp_path: Path) -> Iterator[Output]:
    with closing(LogFile(tmp_path / "logs")) as log:
        yield Output(log)


def test_the_chatter_of_a_good_start_goes_to_the_file_only(
    output: Output, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """A good start prints nothing; the log file has every line without colours and process names."""
    for line in CHATTER:
        output.read(line)

    assert capfd.readouterr() == ("", "")
    log = (tmp_path / "logs" / "serve.log").read_text().splitlines()
    assert len(log) == len(CHATTER)
    assert log[3].startswith("INFO 2026-11-26 08:35:26,340 sophia_Api coabkx6w e87c49e1 -- GET /v1/health")
    assert output.dashboard == "127.0.0.1:8266"
    assert output.phase == "the application is being built"


@pytest.mark.parametrize(
    ("line", "shown"),
    [
        (
            f"(ServeReplica:sophia:Api pid=22113, ip=10.0.0.4) ERROR {SERVE} -- No song can be stored.",
            "error: No song can be stored.",
        ),
        ("WARNING 2026-11-26 08:35:26,340 serve 208 -- a -- b", "warning: a -- b"),
        ("2026-11-26 08:34:14,150\tERR scripts.py:595 -- Received unexpected error", "error: Received unexpected error"),
        ("[2026-11-26 08:34:14,151 E 20831 20831] (raylet) monitor.cc:33: /tmp is full", "error: /tmp is full"),
        ("(raylet) WARNING: 4 PYTHON worker processes have been started", "warning: 4 PYTHON worker processes have been started"),
        ("(autoscaler +1m2s) Error: No available node types can fulfill it", "error: No available node types can fulfill it"),
        ('{"levelname": "WARNING", "asctime": "2026-11-26", "message": "low on space"}', "warning: low on space"),
    ],
)  # fmt: skip
def test_warnings_and_errors_go_to_the_terminal(
    output: Output, capfd: pytest.CaptureFixture[str], line: str, shown: str
) -> None:
    """Warnings and errors in every format of Ray and Serve are printed without time and source line."""
    output.read(line)
    assert capfd.readouterr().err == f"{shown}\n"


def test_a_traceback_stays_in_the_file(output: Output, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """A traceback stays in the log file, and its exception is kept as the reason for a failed start."""
    lines = [
        "(ServeController pid=1) ERROR 2026-11-26 08:35:26,340 controller 1 -- Deploying app 'sophia' failed with exception:",
        "(ServeController pid=1) Traceback (most recent call last):",
        '(ServeController pid=1)   File "app.py", line 1, in build',
        "(ServeController pid=1) serve_app.errors.ConfigurationError: data_dir must be an absolute path",
    ]

    for line in lines:
        output.read(line)

    assert capfd.readouterr().err == "error: Deploying app 'sophia' failed with exception:\n"
    assert "Traceback" in (tmp_path / "logs" / "serve.log").read_text()
    assert output.exception == "data_dir must be an absolute path"
    assert output.failed.is_set()


def test_a_workers_lines_are_shown_after_the_start(output: Output, capfd: pytest.CaptureFixture[str]) -> None:
    """A worker's lines are printed after the start only, because the report covers the start."""
    output.read(f"ERROR {SERVE} -- {WORKER}")
    output.is_starting = False
    output.read(f"ERROR {SERVE} -- {WORKER}")
    assert capfd.readouterr().err == f"error: {WORKER}\n"


def test_rays_stack_traces_and_what_ends_while_it_stops_stay_in_the_file(
    output: Output, capfd: pytest.CaptureFixture[str]
) -> None:
    """Ray's stack frames, and errors while it stops, stay in the log file."""
    for text in (
        "*** SIGTERM received at time=1795683162 on cpu 0 ***",
        "PC: @  0x7fc0b48ed545 clock_nanosleep",
        "    @ 0x7",
    ):
        output.read(f"[2026-11-26 08:52:42,170 E 208 208] logging.cc:497: {text}")
    output.is_stopping = True
    output.read(f"ERROR {SERVE} -- a replica was killed")
    assert capfd.readouterr().err == ""


def test_a_record_without_a_level_is_no_warning() -> None:
    """A JSON line with an empty level does not end the reading thread."""
    assert record('{"levelname": "", "message": "x"}') == ("I", "x")


def test_a_plain_line_begins_no_record() -> None:
    """Text that only resembles a record, such as broken JSON, continues the record before it."""
    assert record("{not json}") is None
    assert record("INFO without a time") is None
    assert record("") is None


def test_a_log_folder_that_cannot_be_made_is_refused(tmp_path: Path) -> None:
    """A log folder that cannot be created is reported in one sentence that names it."""
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigurationError, match=r"file/logs cannot be written to: Not a directory\. Make room there"):
        LogFile(tmp_path / "file" / "logs")


def test_ready_lines_say_where_what_and_how() -> None:
    """The report names the addresses, the model with its device, and a command with the real port."""
    model = {"name": "ace-step", "source": "embedded", "note": "a toy model", "ready_workers": 1}
    worker = {"model": "ace-step", "device": "cpu"}

    where, what, command = ready_lines("http://127.0.0.1:8123", "127.0.0.1:8265", [model], [worker])

    assert where == (
        "Sophia is ready at http://127.0.0.1:8123; API documentation: http://127.0.0.1:8123/docs; "
        "Ray dashboard: http://127.0.0.1:8265"
    )
    assert what.startswith(
        "Models: ace-step (embedded) runs on cpu. It is a toy model. For real songs, use an NVIDIA GPU or "
    )
    assert command.startswith("Try: curl -s http://127.0.0.1:8123/v1/music ")


def test_ready_lines_of_a_model_without_a_worker() -> None:
    """A model that is scaled to zero counts as ready."""
    model = {"name": "m", "source": "org/repository", "note": None, "ready_workers": 0}
    lines = ready_lines("http://127.0.0.1:8000", "", [model], [])
    assert lines[1] == "Models: m (org/repository) gets a worker with its first job."


def test_ready_lines_say_where_songs_are_planned() -> None:
    """The report has the sizes that a worker measured, or why its planner runs elsewhere."""
    model = {"name": "m", "source": "org/repository", "note": None, "ready_workers": 1}
    sizes = {"weights_bytes": 1_330_000_000, "cache_bytes": 1_880_000_000, "rows": 4, "free_bytes": 14_700_000_000}
    inside = {"model": "m", "device": "cuda:0", "planner": {"placement": "worker", "reason": None, **sizes}}
    outside = inside | {"planner": {"placement": "own", "reason": "The planner needs 9.00 GB."}}

    lines = [ready_lines("http://127.0.0.1:8000", "", [model], [worker])[1] for worker in (inside, outside)]

    assert lines[0].endswith(
        "Its planner runs in the worker: 1.33 GB of weights and 1.88 GB of cache for 4 sequences; 14.70 GB were free beside the "
        "model."
    )
    assert lines[1].endswith("Its songs are planned in other processes. The planner needs 9.00 GB.")


def test_ready_lines_of_a_service_that_needs_keys() -> None:
    """The command has a placeholder for the key, and the line before it says how to create one."""
    lines = ready_lines("http://127.0.0.1:8000", "", None, [])
    assert "keys create NAME" in lines[1]
    assert "Bearer KEY" in lines[2]


@pytest.mark.parametrize(
    ("breakers", "reason"),
    [
        ({}, ""),
        ({"a": {"open": False, "error": None}}, ""),
        ({"a": {"open": True, "error": {"message": "no such folder"}}, "b": {"open": False, "error": None}}, ""),
        ({"a": {"open": True, "error": {"message": "no such folder"}}}, "model a cannot be loaded: no such folder"),
    ],
)
def test_a_start_fails_when_no_model_can_be_loaded(breakers: dict[str, Any], reason: str) -> None:
    """The start fails only when no model can be loaded any more."""
    assert failed_models(breakers) == reason


@pytest.mark.parametrize(
    ("options", "named"),
    [({"port": "eight"}, "port must be a whole number"), ({"port": 70_000}, "got 70000"), ([], "a mapping")],
)
def test_a_wrong_address_is_refused(options: Any, named: str) -> None:
    """A wrong address is reported in one sentence that names the field."""
    if not options:
        options = ["port"]
    with pytest.raises(ConfigurationError, match=named):
        address_of({"http_options": options})


@pytest.mark.parametrize(
    ("host", "url"),
    [("0.0.0.0", "http://127.0.0.1:80"), ("::", "http://[::1]:80"), ("10.0.0.4", "http://10.0.0.4:80")],  # noqa: S104
)
def test_the_url_of_an_address_works_on_this_machine(host: str, url: str) -> None:
    """The URL for a host that means all interfaces uses loopback."""
    assert Address(host, 80).url == url


def test_the_launcher_knows_where_serve_listens() -> None:
    """Without an address in the configuration, the launcher uses Serve's default."""
    default = HTTPOptionsSchema()
    assert address_of({}) == (default.host, default.port)
    assert address_of({"http_options": {"host": "127.0.0.1", "port": 8123}}) == ("127.0.0.1", 8123)
