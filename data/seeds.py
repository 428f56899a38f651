"""What a seed may be; imports nothing, for the command line says it before anything is loaded."""

MAX_SEED = 2**32 - 1  # of NumPy's and scikit-learn's generators
