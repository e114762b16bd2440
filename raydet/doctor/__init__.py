"""Whether this machine or cluster is ready for a study: every check is a small function, every finding one line."""
