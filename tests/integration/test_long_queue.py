"""Operations on a queue cost the same however long it is. Times at 100,000 jobs: `python -m benchmarks.long_queue`."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from benchmarks.long_queue import ASKED, Queue, fill
from serve_app.store import Store
from serve_app.store.places import FAR
from tests.support.migrated import migrate


def steps_of(folder: Path, count: int, owners: int) -> dict[str, int]:
    """How many tens of instructions SQLite's machine takes for each thing that is asked of so long a queue."""
    store = Store(f"sqlite:///{folder / str(count)}.db")
    migrate(store)
    fill(store, count, owners)
    steps = [0]

    def count_step() -> int:
        steps[0] += 1
        return 0

    store.database.engine.dispose()
    sa.event.listen(store.database.engine, "connect", _counting(count_step))
    queue = Queue(store, owners)
    queue.prepare()
    queue.find_jobs()
    found: dict[str, int] = {}
    for what, ask in ASKED.items():
        steps[0] = 0
        ask(queue)
        found[what] = steps[0]
    store.close()
    return found


def _counting(count_step: Callable[[], int]) -> Callable[[Any, Any], None]:
    def listen(connection: Any, _: Any) -> None:
        connection.set_progress_handler(count_step, 10)

    return listen


@pytest.mark.fault("A11")
@pytest.mark.parametrize("owners", [1, 10])
def test_nothing_takes_longer_in_a_long_queue(tmp_path: Path, owners: int) -> None:
    """Submitting, looking, listing, a place, cancelling, claiming, health and the policy: counted in SQLite's own steps."""
    least = FAR * owners + 100  # so that the most is counted in both
    at_short = steps_of(tmp_path, least, owners)
    at_long = steps_of(tmp_path, 5 * least, owners)
    slower = {what: (at_short[what], steps) for what, steps in at_long.items() if steps > 1.2 * at_short[what] + 10}
    assert slower == {}
