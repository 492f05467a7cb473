"""What every floor shares: records, targets, settings, errors, seeds and the run log."""
