"""From files to batches: sources, split, order, transforms, loaders."""
