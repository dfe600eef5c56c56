"""The HTTP side. It never imports torch, and answers pings whatever the workers do."""
