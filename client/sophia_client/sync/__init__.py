"""The client that blocks. Its files are written from the package `aio`, except runtime.py."""
