"""New data starts runs by itself, and runs whose process died go on."""
