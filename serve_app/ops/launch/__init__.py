"""`make serve`: starts `serve run`, shortens its output to what a person needs, and reports when Sophia is ready."""
