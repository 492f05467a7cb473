"""The words of the command line, one file each; `main.py` puts them together."""
