"""Sophia: ACE-Step 1.5 over HTTP, as a Ray Serve application with a durable job queue."""

__version__ = "0.1.0"
