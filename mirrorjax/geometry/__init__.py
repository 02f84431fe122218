"""What the theory says about (g, h): R_a, whether it exists, and what follows from it."""
