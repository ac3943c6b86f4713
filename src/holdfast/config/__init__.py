"""Text to specs: what `holdfast.toml` says, checked.  Pure but for reading the file."""
