"""Caches in recipes."""
