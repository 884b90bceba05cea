"""The operators' API and status page."""
