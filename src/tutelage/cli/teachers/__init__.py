"""The words that are about teachers alone: keeping a teacher's answers for later runs."""
