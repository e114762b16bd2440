"""Is this machine, is this cluster fit for a study: every question is a small function, every answer one line."""
