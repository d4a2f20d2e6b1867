"""What passes between the notebook, the keeper and the ranks."""
