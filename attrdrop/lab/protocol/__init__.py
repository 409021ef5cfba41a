"""A fair comparison: every arm is tuned with the same budget, then fresh seeds are scored on the test split."""
