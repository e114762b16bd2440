"""The directory of a run, as files: written by its main worker, read by drivers and reports."""
