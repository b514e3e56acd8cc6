"""DVC for the flows: started once, forked for each command."""
