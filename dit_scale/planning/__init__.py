"""What training takes before it starts: memory, communication, arithmetic, time and cost."""
