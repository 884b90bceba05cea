"""HTTP on both sides, towards clients and towards engines. Knows nothing of inference."""
