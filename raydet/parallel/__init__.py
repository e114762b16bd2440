"""Training with several processes: collectives, layouts, and wrappers applied to a model from outside."""
