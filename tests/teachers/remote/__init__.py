"""Teachers on a server: parity, faults, patience."""
