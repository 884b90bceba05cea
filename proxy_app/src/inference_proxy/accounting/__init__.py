"""What is recorded of each request: log, metrics, usage and traces."""
