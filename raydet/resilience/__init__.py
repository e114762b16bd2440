"""What keeps a run from losing work: heartbeat, stop signals, out of memory; and injected faults, as proof."""
