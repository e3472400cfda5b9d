"""Federated learning, seen from the reconciler: jobs go in, results come out; user code and Flower stay in children."""
