"""The stages of the DAG, one verb a file."""
