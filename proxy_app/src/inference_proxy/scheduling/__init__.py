"""Which request goes to which engine, and when."""
