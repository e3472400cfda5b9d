"""Telling people outside of Git: statuses and comments on forges, webhooks – on transitions only, each once, beside the loop."""
