"""What moves a batch of lanes by a bounded amount of work."""
