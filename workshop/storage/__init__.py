"""What the service stores, behind the contracts: in SQLite by default, or in PostgreSQL."""
