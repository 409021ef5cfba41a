"""What every other package of attrdrop stands on. Imports torch and NumPy, and nothing of attrdrop above it."""
