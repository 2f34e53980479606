"""Pages about a run, an experiment or a validated data set; imports no torch."""
