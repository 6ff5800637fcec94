"""What the teams agree on: a Protocol per model or store, the values that cross, and the error tree.

Nothing here knows FastAPI, Ray or scikit-learn: any team can import it, and none has to import another's framework.
"""
