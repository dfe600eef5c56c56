"""`make acceptance`: plays every task of a model and writes a report with the figures."""
