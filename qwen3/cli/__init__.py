"""The command `qwen3`."""
