"""How many workers each model has: the decision, what it looks at, and what Serve's controller calls."""
