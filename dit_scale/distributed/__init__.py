"""Ranks: who they are, what they compute on, what they tell each other. Only here a launcher's variables are known."""
