"""Images: build plans to OCI images, without a daemon and without emulation. Only this package knows OCI."""
