"""Tests of the rollouts room."""
