"""One file per model line."""
