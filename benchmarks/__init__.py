"""What Modelmint costs, each figure beside a peer's; one command a file."""
