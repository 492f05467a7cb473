"""What runs in vLLM's own Python: never imported here, and importing nothing of this package."""
