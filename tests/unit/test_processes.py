"""Whether two processes share one SQLite database or have databases of their own."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from serve_app.processes import can_see, folder_id


def asked_elsewhere(namespace: str, first: str, mark: str) -> bool:
    """The answer of a process in another namespace, after running the shell command `first` there."""
    program = f"from serve_app.processes import can_see; print(can_see({mark!r}))"
    words = ["unshare", namespace, "sh", "-ec", f'{first}; exec "$@"', "sh", sys.executable, "-c", program]
    ran = subprocess.run(words, capture_output=True, text=True)
    if ran.returncode and os.geteuid() != 0:
        pytest.skip(f"no namespaces here: {ran.stderr.strip()}")
    assert ran.returncode == 0, ran.stderr
    return ran.stdout.strip() == "True"


def test_a_container_with_the_same_files_sees_them_under_any_host_name(tmp_path: Path) -> None:
    """Another host name on the same disk is the same database."""
    assert asked_elsewhere("--uts", "hostname another", folder_id(tmp_path / "data"))


def test_a_container_with_files_of_its_own_does_not_see_ours(tmp_path: Path) -> None:
    """The same host name with another disk is another database."""
    assert not asked_elsewhere("--mount", f"mount -t tmpfs tmpfs {tmp_path}", folder_id(tmp_path / "data"))


def test_a_folder_that_is_made_later_is_the_same_place(tmp_path: Path) -> None:
    """A folder keeps its id when the first start creates it; a deleted folder's id is no longer valid."""
    mark = folder_id(tmp_path / "not" / "yet")
    (tmp_path / "not" / "yet").mkdir(parents=True)
    there = folder_id(tmp_path / "not" / "yet")
    (tmp_path / "not" / "yet").rmdir()
    assert can_see(mark)
    assert not can_see(there)
