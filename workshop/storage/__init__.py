"""What the service keeps, behind the contracts. SQLite by default, any SQLAlchemy URL otherwise."""
