"""What runs the DAG: services on a laptop, and the server that answers requests."""
