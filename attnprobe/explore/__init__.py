"""Interactive pages: one engine for reports, views of single sequences and comparisons of runs."""
