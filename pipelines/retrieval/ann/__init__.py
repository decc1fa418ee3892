"""An index over the item vectors of a model, so that a request does not compare with the whole catalogue."""
