"""Files and the command line."""
