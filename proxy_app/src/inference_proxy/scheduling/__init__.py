"""Which engine a request goes to, and when."""
