"""What an operator types."""

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
    """The database that the commands find."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SOPHIA_DATA_DIR", str(tmp_path))
    store = Store(AppArgs().resolved_database_url)
    store.migrate()
    return store


def test_cost_tells_where_the_money_went(store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    """By use, with the price of a song; by API key, whose shares are the whole; by worker."""
    worker = WorkerRow(
        id="w1", model="m", node="10.0.0.7", process=Process.this(), device="cuda", phase=WorkerPhase.IDLE
    )
    store.costs.held(worker, {"loading": 360, "idle": 720, "generating": 2520}, 0.5)
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
    """Nothing ran: one sentence."""
    assert main(["cost", "--hours", "2"]) == 0
    assert capsys.readouterr().out == "No worker ran in the last 2 hours.\n"


@pytest.mark.parametrize("hours", ["0", "-1", "x", "1.5", "999999"])
def test_cost_wants_whole_hours(hours: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Anything else is refused with what is allowed and what was given."""
    with pytest.raises(SystemExit):
        main(["cost", f"--hours={hours}"])
    assert f"must be a whole number from 1 to 87600, got {hours!r}" in capsys.readouterr().err
