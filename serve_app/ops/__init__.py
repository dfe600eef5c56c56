"""What operators run: the command line, its doctor, and the start of a service."""
