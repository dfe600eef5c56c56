"""Tests without a server, a database server or a model: `make unit`."""
