"""Tests of the rewards room."""
