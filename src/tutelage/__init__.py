"""Tutelage: distil large language models with losses that are proved right."""
