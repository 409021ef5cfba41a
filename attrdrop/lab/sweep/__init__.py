"""Many trials of one thing: kept on disk one by one, done several at once, proposed where a grid would be too many."""
