"""The model server: Open Inference Protocol v2 and plain predictions over verified versions."""
