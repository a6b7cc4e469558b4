"""Run a forward pass at theta + c z without disturbing theta."""
