"""The command line and what starts a run."""
