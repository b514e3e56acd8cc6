"""Work on a machine that has only torch: no network, none of the other libraries of this project."""
