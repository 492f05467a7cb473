"""Tests of the objectives room."""
