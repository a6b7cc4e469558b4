"""The command `zerograd`."""
