"""One module per subject; none imports another."""
