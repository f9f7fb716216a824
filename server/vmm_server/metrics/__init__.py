"""What the server counts: `collector.Metrics` is all of it, `families` says what it means."""
