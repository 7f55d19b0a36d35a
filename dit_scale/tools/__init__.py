"""Commands that look after what the others make."""
