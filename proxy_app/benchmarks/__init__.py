"""Measures what gateways cost in front of an engine that costs nothing. See README.md beside this file."""
