"""How a run gets onto Ray: the cluster, its free resources, the workers and their restarts."""
