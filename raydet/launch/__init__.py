"""Running on Ray: the cluster, its free resources, the workers and their restarts."""
