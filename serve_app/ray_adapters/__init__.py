"""Everything that touches Ray's private or unstable interfaces."""
