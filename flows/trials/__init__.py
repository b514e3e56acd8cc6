"""The trials of a study: which there are, the worktree that one runs in, and those that run on another machine."""
