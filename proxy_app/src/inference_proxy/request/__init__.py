"""One request: read, checked, and made into a job for an engine."""
