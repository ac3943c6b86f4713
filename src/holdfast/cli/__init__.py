"""The commands.  `run` is dispatched by hand before anything is imported; the rest use click."""
