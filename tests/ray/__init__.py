"""Tests on a real one-node Ray cluster."""
