"""The schema, a step at a time."""
