"""What the worker processes have in common: start-up, life and end of a process."""
