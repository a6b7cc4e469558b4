"""Token ids to log-probabilities, losses, answers and metrics: the model seen from a task."""
