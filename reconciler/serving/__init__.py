"""The client side of inference: asking a service, and verifying it."""
