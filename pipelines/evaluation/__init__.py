"""Tables in, numbers out; knows no model."""
