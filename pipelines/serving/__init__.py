"""The champion answers requests."""
