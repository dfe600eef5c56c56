"""Threads of every API process: the sweeper, the janitor, the webhook sender and the storage watch."""
