"""Ahead-of-time compilation: every kernel, as the ops launch it, compiled for GPUs that are not here."""
