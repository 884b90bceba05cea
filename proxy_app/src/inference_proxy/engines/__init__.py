"""The engines: what is known about each, and how it is found out."""
