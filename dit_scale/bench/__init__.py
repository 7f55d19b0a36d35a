"""`dit-scale bench`: what parts of the system do a second, measured so that figures can be compared and traced."""
