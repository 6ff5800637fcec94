"""The checks of each lesson's exercises, one module per lesson: `lesson_NN.py`."""
