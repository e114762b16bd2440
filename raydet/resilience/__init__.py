"""What keeps a run from losing work: heartbeats, stop requests, out-of-memory errors, and injected faults as proof."""
