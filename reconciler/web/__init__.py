"""What the outside may ask of `flops serve`: webhooks, metrics, health. Nothing here decides; a webhook only says "look"."""
