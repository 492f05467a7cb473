"""Tests of what moves in a student's routers while it trains."""
