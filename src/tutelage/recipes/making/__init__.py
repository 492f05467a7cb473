"""Students made at once from a model, without a training: what `upcycle` and `prune` do."""
