"""Checkpoints: from the hub to disk, from disk to tensors."""
