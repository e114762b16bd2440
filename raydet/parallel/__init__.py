"""Everything that knows about more than one process, applied to a model from outside."""
