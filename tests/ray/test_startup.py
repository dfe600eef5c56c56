"""A worker starts nearly as fast as its imports and its disk allow. `make startup` runs this."""

from pathlib import Path

import pytest

from benchmarks.startup import large, measure, table


@pytest.mark.startup
def test_imports_and_reading_cost_little_more_than_they_must(checkpoint: Path, tmp_path: Path) -> None:
    """Imports and reading take at most 1.3 times what importing the same modules and reading the same bytes takes."""
    startup = measure(large(checkpoint, tmp_path / "large"))

    print(table(startup))
    assert startup.ratio <= 1.3
