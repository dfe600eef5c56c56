"""The planner: a language model that writes a song's metadata and audio codes before the engine renders them."""
