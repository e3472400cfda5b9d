"""What the commands of the CLI do: they call the packages and show what comes back."""
