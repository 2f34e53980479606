"""Pages about one run or one experiment, made from the files of its folder; imports no torch."""
