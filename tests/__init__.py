"""Tests, by behaviour."""

import os

# Before torch is imported, here or in a process started from here: with several processes on two cores, libgomp's threads would
# spin at every small operation (the engine's tests: 252 s with its default, 52 s with one thread). The count is for the threads of
# a loaded engine, whose number is a setting.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("GOMP_SPINCOUNT", "1000")

# Ray runs workers at nice 15, where they starve as soon as anything else on the machine wants its cores.
os.environ.setdefault("RAY_worker_niceness", "0")

# Tests may run beside a Sophia: its settings (they beat what a test sets), and so its database and audio, are none of theirs, nor
# is its Ray. Here, as serve_app reads one of them when it is imported.
for _name in [*os.environ]:
    if _name == "RAY_ADDRESS" or (
        _name.startswith("SOPHIA_") and not _name.startswith(("SOPHIA_TEST_", "SOPHIA_WRITE_DOCS"))
    ):
        del os.environ[_name]
