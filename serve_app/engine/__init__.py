"""What makes the music: `protocol` says what a worker drives, and each engine is a module or package beside it."""
