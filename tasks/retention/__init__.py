"""What `clean` lists: items of the stores, each with its size and why it stays or may go."""
