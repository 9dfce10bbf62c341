"""JSONL in, JSONL out: many prompts answered together, records in the order of the lines, and no work lost."""
