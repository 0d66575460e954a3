"""The services of a laptop run: on loopback, shared by processes, stopped by the last one."""
