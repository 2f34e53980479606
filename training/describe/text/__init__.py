"""Generated texts: schema of attributes, prompts, checks, records and counts."""
