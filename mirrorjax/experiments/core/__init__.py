"""What every experiment shares: the run folder, claims, the report."""
