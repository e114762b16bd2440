"""Detection metrics, and match records from which AP can be computed again on any resampled set of images."""
