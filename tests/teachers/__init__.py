"""Tests of the teachers room."""
