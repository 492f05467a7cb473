"""Tests of the moe room."""
