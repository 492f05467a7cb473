"""Tests of clips and supports."""
