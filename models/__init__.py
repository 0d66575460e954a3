"""Lines, families and data kinds: what a model version is, without where or when it runs."""
