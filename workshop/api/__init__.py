"""The FastAPI layer. It knows the contracts, and nothing of what implements them."""
