"""Captions' styles, and what a language model is asked and answers about pictures; knows no data set."""
