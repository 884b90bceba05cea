"""What clients see: endpoints, API dialects, errors and request bodies."""
