"""Losses from part of a vocabulary."""
