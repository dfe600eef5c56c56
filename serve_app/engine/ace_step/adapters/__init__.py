"""Adapters (LoRA, LoKr, DoRA): small files that change how the transformer plays, chosen by each request."""
