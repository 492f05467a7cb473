"""Tests of the fused room."""
