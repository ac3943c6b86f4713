"""Text to specs: `load` reads and checks a `holdfast.toml`, `model` is what comes out, `places` is where things lie."""
