"""Tests, by behaviour."""

import os

# Before torch is imported, here or in a process started from here: with several processes on two cores, libgomp's threads would
# spin at every small operation (the engine's tests: 252 s with its default, 52 s with one thread).
os.environ.setdefault("OMP_NUM_THREADS", "1")
