"""Will it fit? The memory of one training step, counted before any accelerator is paid for.

sizes     bytes in words: "80GiB" and back
counts    what lasts: parameters, their shards, gradients, optimizer state
live      bytes of all live tensors, while any code runs
measure   encoder and pyramid on fake tensors: bytes by part and moment, for any batch and depth
heads     closed formulas for what depends on data and cannot run on fake tensors
ledger    one rank's memory, row by row, at the worst moment of a step
fit       the largest micro-batch, the table over backbones and strategies, the recommendation
remedies  what helps after an out-of-memory error, and by how much

Weights, gradients and optimizer state follow from parameter counts. Activations are not modelled: the modules
themselves run, on tensors without memory, under the run's precision and activation checkpointing. So the plan follows
the code when the models change; only `heads` must be kept in step by hand, and a test compares it with a real run.
"""
