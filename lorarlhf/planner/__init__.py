"""What memory a stage takes, before anything is loaded."""
