"""From the hub and from disk: checkpoints and their tensors."""
