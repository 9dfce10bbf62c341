"""Configurations: the shape of a model, and how Hugging Face writes it down."""
