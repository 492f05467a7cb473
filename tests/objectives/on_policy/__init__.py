"""Tests of what the student's own tokens ask for."""
