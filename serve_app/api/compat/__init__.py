"""The APIs of other services: one file a family, each in the table of `families.py`."""
