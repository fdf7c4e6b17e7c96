"""EMG analytics recomputed from a recording. Importing the package itself loads neither NumPy nor SciPy."""
