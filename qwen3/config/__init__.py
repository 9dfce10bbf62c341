"""Configuration: the shape of a model, how to read it, and how to run it."""
