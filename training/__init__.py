"""The pipeline on top of `bdam_fast`: data, models, training, evaluation, reports; run `python -m training.<stage>`."""
