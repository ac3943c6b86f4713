"""Where events and effects meet the world: one asyncio loop, one supervisor."""
