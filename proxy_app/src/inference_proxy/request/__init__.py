"""One request: read, validated and turned into a job for an engine."""
