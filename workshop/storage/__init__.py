"""What the service stores, behind the contracts, in SQLite or PostgreSQL, and what it caches, here or in Redis."""
