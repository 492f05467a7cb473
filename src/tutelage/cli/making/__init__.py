"""Words that make a model at once, without a training: `upcycle` and `prune`."""
