"""The model: configuration and weights in, hidden states and logits out."""
