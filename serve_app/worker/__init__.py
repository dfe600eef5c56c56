"""The GPU side: claim a job, run it, publish its songs."""
