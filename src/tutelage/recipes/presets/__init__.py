"""Recipes that ship inside the package and go by name, with the data they need."""
