"""Recipes whose teacher is on a server."""
