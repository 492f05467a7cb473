"""Tests of the clustering room."""
