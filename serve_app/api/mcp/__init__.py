"""The MCP server's tools and resources. Only the family in `compat/mcp.py` imports them, at its first call."""
