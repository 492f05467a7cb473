"""Answers of a teacher on disk."""
