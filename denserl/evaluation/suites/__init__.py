"""The suites by which reward models are judged: one file each, and their registry."""
