"""What clients see: endpoints, dialects, errors, and the bodies that they send."""
