"""How far a student is from its teacher on held-out rows, and what it says."""
