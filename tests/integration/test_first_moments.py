"""The start of a process, when several threads use the database before its tables exist."""

import subprocess
import sys
from pathlib import Path
from typing import Final

import httpx

from serve_app.errors import StoreUnavailable
from serve_app.store import Store
from tests.support.running import running

# Slow imports make certain what happens by chance otherwise: one thread meets what another has imported by half.
PROGRAM: Final = """
import sys, threading, time
from pathlib import Path
from serve_app.store import Store, revisions

class Slow:
    def find_spec(self, name, path=None, target=None):
        if name.startswith("alembic"):
            time.sleep(0.01)

assert "alembic" not in sys.modules
sys.meta_path.insert(0, Slow())
store = Store(f"sqlite:///{Path(sys.argv[1]) / 'jobs.db'}")

def ask(number):
    time.sleep(0.005 * number)
    try:
        with store.database.engine.connect() as connection:
            revisions.current(connection) if number else store.migrate()
    except Exception as error:
        print(type(error).__name__, error)

threads = [threading.Thread(target=ask, args=(number,)) for number in range(8)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
"""


def test_threads_that_ask_first_disturb_each_other_in_nothing(tmp_path: Path) -> None:
    """A process's first requests and its migration can run concurrently, although each imports modules."""
    ran = subprocess.run([sys.executable, "-c", PROGRAM, str(tmp_path)], capture_output=True, text=True, check=True)

    assert ran.stdout == ""


def test_the_first_request_finds_the_tables(tmp_path: Path) -> None:
    """On a new database the service answers only once the tables exist, so that no first request is refused."""
    with running(tmp_path, workers=0, migrate=False) as service:
        answer = httpx.post(f"{service.url}/v1/jobs", json={"prompt": "x"}, timeout=30)

    assert answer.status_code == 202


def test_a_database_without_tables_says_so(tmp_path: Path) -> None:
    """A request before the tables exist gets the error that they have not been created yet."""
    store = Store(f"sqlite:///{tmp_path / 'jobs.db'}")
    refusals: list[str] = []

    try:
        store.backlog.counts()
    except StoreUnavailable as error:
        refusals.append(error.message)
    store.close()

    assert ["its tables are not created yet" in refusal for refusal in refusals] == [True]
