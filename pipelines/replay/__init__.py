"""Past time lived through again: what the loop decided, and what every other policy would have had."""
