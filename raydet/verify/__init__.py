"""Checks on the user's own machine and recipe that nothing is lost when a run or a study is killed."""
