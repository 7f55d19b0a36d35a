"""A run as a batch job: submitted, asked how it stands, queued again."""
