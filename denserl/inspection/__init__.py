"""Data looked at before anything is trained: what its rows are, how long, how often the same, and where entropies cut them."""
