"""The engines: what is known of each, and how it is found out."""
