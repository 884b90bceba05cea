"""What is recorded about each request: access log, metrics, usage and traces."""
