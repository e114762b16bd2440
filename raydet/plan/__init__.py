"""Will it fit? The memory of one training step, predicted without an accelerator.

sizes     byte sizes as text: "80GiB" and back
sections  names of the parts of a detector, in the order of its forward pass
counts    parameters, their shards, gradients, optimizer state
live      bytes of all live tensors, while any code runs
measure   a training step on fake tensors: bytes by scope and moment, for any number of images
heads     the head on fake tensors
moments   the moments of a step, for any depth, strategy and accumulation
ledger    one rank's memory, row by row, at the worst moment of a step
fit       the largest micro-batch, the recommendation, the table over backbones and strategies
remedies  settings that help after an out-of-memory error, and their savings

Weights, gradients and optimizer state follow from parameter counts. Activations are not modelled: the modules
themselves run, on fake tensors, under the run's precision and activation checkpointing, so the plan follows the code
when the models change. Only `heads` repeats an order of calls by hand; tests compare everything with real steps.

Not counted: workspaces of cuDNN, savings of torch.compile, and buffers of synchronised batch norms; the margin has to
cover those.
"""
