"""One file per origin: each turns what it finds into the canonical tables."""
