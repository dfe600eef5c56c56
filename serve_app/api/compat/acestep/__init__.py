"""ACE-Step's own API server, for the user interfaces, plug-ins and scripts that were written for it."""
