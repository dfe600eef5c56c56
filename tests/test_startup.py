"""A worker starts nearly as fast as its imports and its disk allow. `make startup` runs this."""

from pathlib import Path

import pytest

from benchmarks.startup import MEGABYTES, measure, table
from tests.checkpoints import enlarged


@pytest.mark.startup
def test_imports_and_reading_cost_little_more_than_they_must(checkpoint: Path, tmp_path: Path):
    """Imports and reading take at most 1.3 times what importing the same modules and reading the same bytes takes."""
    startup = measure(enlarged(checkpoint, tmp_path / "large", MEGABYTES))

    print(table(startup))
    assert startup.ratio <= 1.3
