"""Processes held by descriptor.  No third-party import, no asyncio, nothing above this layer."""
