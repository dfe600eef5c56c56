"""The toy model that Sophia plays without a GPU: the programs that make it. Not part of the wheel."""
