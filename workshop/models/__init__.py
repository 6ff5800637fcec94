"""Plain machine learning: train, save, load, predict. No web, no Ray."""
