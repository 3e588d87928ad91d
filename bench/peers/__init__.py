"""What others offer for the same work, where it needs a package or a card: each can be made, or says what it lacks."""
