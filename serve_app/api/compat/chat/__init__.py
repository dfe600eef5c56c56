"""Chat completions with songs as the answer."""
