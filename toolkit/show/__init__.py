"""Show: figures, reports and the demonstration."""
