"""Helpers that tests share, and the tools of the Makefile."""
