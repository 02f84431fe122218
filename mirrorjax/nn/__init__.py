"""The theory in networks: tensors as g(w), and what happens to their spectra."""
