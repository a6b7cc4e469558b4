"""`zerograd compare`: methods over seeds, one table."""
