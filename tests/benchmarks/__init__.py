"""Tests of the benchmarks: their pure parts, never a time."""
