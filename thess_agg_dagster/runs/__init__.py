"""What starts runs, and where: the command, its worker processes, the queue, a fleet."""
