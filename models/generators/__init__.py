"""Models that write a motion's tokens from a text."""
