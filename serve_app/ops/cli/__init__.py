"""The command line `sophia`: one file for each group of commands."""

from serve_app.ops.cli.program import app, main

__all__ = ["app", "main"]
