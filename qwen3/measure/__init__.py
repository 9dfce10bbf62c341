"""What was computed and what it cost: steps, expert load, bytes, memory."""
