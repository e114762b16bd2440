"""How good a model is: metrics of one set of predictions, and the records that they can be computed from again."""
