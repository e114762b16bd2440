"""Two streams' maps of one stage become one."""
