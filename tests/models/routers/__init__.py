"""Tests of the routers of mixture-of-experts models."""
