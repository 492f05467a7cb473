"""Several teachers in recipes."""
