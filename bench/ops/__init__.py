"""Cases and peers of the operators, one file each."""
