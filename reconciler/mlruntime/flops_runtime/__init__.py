"""What runs inside the ML environment: aggregator, learners, export and inference.

Nothing here is imported by the reconciler. It may use the standard library, NumPy, Flower and, lazily, datasets and
MLflow; it has to run on every interpreter that an ML repo may ask for (Python 3.10 and later).
"""
