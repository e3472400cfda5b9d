"""The names that FLOps' ML repos import, resolved inside our runtime."""
