"""HTTP on both sides, to clients and to engines. Knows nothing of inference."""
