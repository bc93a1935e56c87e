"""What people look at: one page about a store, and what changed between two releases."""
