"""Starting runs: the command, its worker processes, the queue, a fleet."""
