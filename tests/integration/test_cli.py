"""The operator's commands."""

from pathlib import Path

import pytest

from serve_app.config import AppArgs
from serve_app.jobs import WorkerPhase
from serve_app.ops.cli import main
from serve_app.processes import Process
from serve_app.store import Store, WorkerRow
from tests.support.queue import claim, finish, submit


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    """The database that the commands use."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SOPHIA_DATA_DIR", str(tmp_path))
    store = Store(AppArgs().resolved_database_url)
    store.migrate()
    return store


def test_cost_tells_where_the_money_went(store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    """The cost is listed by use with a price per song, by API key, and by worker."""
    worker = WorkerRow(
        id="w1", model="m", node="10.0.0.7", process=Process.this(), device="cuda", phase=WorkerPhase.IDLE
    )
    store.costs.add_device_time(worker, {"loading": 360, "idle": 720, "generating": 2520}, 0.5)
    for owner, gpu_s in (("studio", 1500.0), ("label", 500.0)):
        submit(store, owner=owner, duration=60)
        finish(store, claim(store), gpu_s=gpu_s)
    assert main(["cost"]) == 0
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert "m, last 24 hours" in lines
    assert "songs 0.556 0.2778" in lines
    assert "attempts without a song 0.144 0.0722" in lines
    assert "loading 0.100 0.0500" in lines
    assert "all 1.000 0.5000" in lines
    assert "a song, all included 0.2500" in lines
    assert "studio 1 1.0 0.417 0.000 0.3750" in lines
    assert "label 1 1.0 0.139 0.000 0.1250" in lines
    assert "w1 10.0.0.7 0.100 0.200 0.700 0.5000" in lines


def test_cost_without_any_worker_says_so(store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    """If nothing ran, the command prints one sentence."""
    assert main(["cost", "--hours", "2"]) == 0
    assert capsys.readouterr().out == "No worker ran in the last 2 hours.\n"


@pytest.mark.parametrize("hours", ["0", "-1", "x", "1.5", "999999"])
def test_cost_wants_whole_hours(hours: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Any other value is refused with what is allowed and what was given."""
    assert main(["cost", f"--hours={hours}"]) == 2
    assert f"must be a whole number from 1 to 87600, got {hours!r}" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "problem", "accepted"),
    [
        ([], "Missing command", "'sophia' accepts --config, --version, --help and the commands jobs, "),
        (["kez"], "No such command 'kez'", "'sophia' accepts --config"),
        (["--verbose", "jobs"], "No such option: --verbose", "'sophia' accepts --config"),
        (["keys"], "Missing command", "the commands create, list, webhook-secret, revoke"),
        (["keys", "create"], "Missing argument 'NAME'", "'sophia keys create' accepts NAME, --outranks, --help"),
        (["keys", "create", "a", "--rank"], "No such option: --rank", "'sophia keys create' accepts NAME, --outranks"),
        (["keys", "create", "a", "b"], "unexpected extra argument", "'sophia keys create' accepts NAME, --outranks"),
        (["jobs", "--limit", "0"], "must be a whole number from 1 to 10000, got '0'", "'sophia jobs' accepts --state"),
        (["jobs", "--state", "lost"], "'lost' is not a state", "the states are queued, running, succeeded"),
    ],
)
def test_a_wrong_command_line_ends_with_status_2(
    words: list[str], problem: str, accepted: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """One line on stderr names the problem and what the command accepts; nothing goes to stdout."""
    status = main(words)

    printed = capsys.readouterr()
    assert (status, printed.out) == (2, "")
    [line] = printed.err.splitlines()
    assert line.startswith("sophia: ")
    assert problem in line
    assert accepted in line


@pytest.mark.parametrize("words", [["reset"], ["pause"], ["resume"], ["weights", "pull"], ["weights", "verify"]])
def test_an_unknown_model_ends_with_status_1(
    store: Store, words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """Every command that takes a model refuses an unknown one in one sentence with the models' names and the code."""
    assert main([*words, "nothing"]) == 1
    error = capsys.readouterr().err
    assert error == ("sophia: The configuration has no model 'nothing'. Its models are: ace-step. [not_found]\n")


def test_a_configuration_that_cannot_be_read_ends_with_status_1(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """An error of Sophia is one line on stderr with its code, without a traceback."""
    assert main(["--config", str(tmp_path / "missing.yaml"), "jobs"]) == 1
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("sophia: ")
    assert line.endswith("[configuration_error]")


def test_jobs_are_listed_by_state(store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    """`--state` may be repeated, and `--limit` keeps the newest jobs."""
    submit(store)
    finish(store, claim(store))
    newest = [submit(store).id, submit(store).id][::-1]

    assert main(["jobs", "--state", "queued", "--state", "failed"]) == 0
    queued = capsys.readouterr().out.splitlines()
    assert main(["jobs", "--limit", "1"]) == 0
    limited = capsys.readouterr().out.splitlines()

    assert [line.split("\t")[:2] for line in queued] == [[id, "queued"] for id in newest]
    assert [line.split("\t")[0] for line in limited] == newest[:1]


def test_a_revoked_key_is_gone(store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    """`keys create` prints the key alone on stdout, `keys revoke` deletes it, and a second revocation is an error."""
    assert main(["keys", "create", "studio"]) == 0
    [key] = capsys.readouterr().out.splitlines()
    assert key.startswith("sophia-")
    assert [name for name, _ in store.keys.names()] == ["studio"]

    assert main(["keys", "revoke", "studio"]) == 0
    assert main(["keys", "list"]) == 0
    said = capsys.readouterr()
    assert said.out == ""
    assert "That was the last key." in said.err
    assert "unfinished" not in said.err
    assert "There are no API keys." in said.err
    assert main(["keys", "revoke", "studio"]) == 1


def test_the_unfinished_jobs_of_a_revoked_key_are_told(store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    """`keys revoke` says how many of the key's jobs will still run; `reset` without a failed load says that."""
    store.keys.create("studio", False)
    model = next(iter(AppArgs().models))
    for owner in ("studio", "studio", "other"):
        submit(store, owner, model=model)

    assert main(["keys", "revoke", "studio"]) == 0
    assert main(["reset", model]) == 0

    said = capsys.readouterr()
    assert "studio has 2 unfinished jobs, which will still run." in said.err
    assert said.out == f"{model} has no failed loads, so there is nothing to reset.\n"
