"""What an upstream accepts and how it answers, found by asking it, and the settings that follow from that."""
