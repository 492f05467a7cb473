"""Tests of the room `routing`."""
