"""Tests of parts together: real databases, servers, processes and models, in one process or a few."""
