"""The JSON bodies that the API answers with, as pydantic models: what /docs shows."""
