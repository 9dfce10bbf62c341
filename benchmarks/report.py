"""Writes the tables of README.md and the plots from the records alone."""
