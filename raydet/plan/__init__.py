"""Will it fit? The memory of one training step, counted before any accelerator is paid for.

sizes     bytes in words: "80GiB" and back
places    names for the parts of a detector, in the order of its forward pass
counts    what lasts: parameters, their shards, gradients, optimizer state
live      bytes of all live tensors, while any code runs
measure   a training step on tensors without memory: bytes by part and moment, for any number of images
heads     the head in outline: sizes in place of what depends on values
moments   a step as a line of moments, for any depth, strategy and accumulation
ledger    one rank's memory, row by row, at the worst moment of a step
fit       the largest micro-batch, the recommendation, the table over backbones and strategies
remedies  what helps after an out-of-memory error, and by how much

Weights, gradients and optimizer state follow from parameter counts. Activations are not modelled: the modules
themselves run, on fake tensors, under the run's precision and activation checkpointing, so the plan follows the code
when the models change. Only `heads` repeats an order of calls by hand; tests compare all of it with real steps.

Not counted: what cuDNN takes while a convolution runs, what torch.compile saves, and what synchronised batch norms
exchange; the margin has to cover those.
"""
