"""The pipeline on top of `bdam_fast`: data, models, training, evaluation and reports; run as `python -m training.<stage>`."""
