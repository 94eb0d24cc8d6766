"""Policies judged by their answers: the files of the published suites, and the numbers that are made of judgements."""
