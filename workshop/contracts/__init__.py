"""What the teams agree on: a Protocol per model or store, the types that are exchanged, and the errors.

Nothing here knows FastAPI, Ray or scikit-learn, so any team can import it without another team's framework.
"""
