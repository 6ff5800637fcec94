"""The FastAPI side. Knows the contracts and nothing behind them."""
