"""Hundreds of candidates become an order."""
