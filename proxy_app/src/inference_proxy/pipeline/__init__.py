"""The steps of a request for an engine, in order."""
