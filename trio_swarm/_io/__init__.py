"""Effects: the only room that touches sockets, processes and files."""
