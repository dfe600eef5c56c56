"""The client for asyncio. The package `sync` is written from this one."""
