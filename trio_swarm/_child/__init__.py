"""What runs in a child process: light, and it imports no room."""
