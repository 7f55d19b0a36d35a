"""What watches a run from beside it: signs of life, hangs, slow ranks, its history, and what it can do without."""
