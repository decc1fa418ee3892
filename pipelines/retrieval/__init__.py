"""The whole catalogue becomes hundreds of candidates a user."""
