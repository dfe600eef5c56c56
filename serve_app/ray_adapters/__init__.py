"""Adapters to Ray's private or unstable interfaces. No other package uses those."""
