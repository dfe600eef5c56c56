"""The HTTP interface. It never imports torch, and its liveness probes depend on neither workers nor the database."""
