"""What is being made on branches, until it is a version."""
