"""`python -m flops_runtime.health PORT`: 0 when the inference server of this container is healthy.

A container's health check runs every few seconds for as long as it lives: this imports a socket and nothing else.
"""

import socket
import sys

LIMIT_SECONDS = 4.0


def main(arguments: "list[str]") -> int:
    """Ask for /health on this machine; anything but a 200 in time is unhealthy."""
    try:
        with socket.create_connection(("127.0.0.1", int(arguments[0])), LIMIT_SECONDS) as connection:
            connection.sendall(b"GET /health HTTP/1.0\r\nHost: localhost\r\n\r\n")
            answer = connection.recv(64)
    except OSError as error:
        print(error)
        return 1
    print(answer.split(b"\r\n", 1)[0].decode("latin-1"))
    return 0 if b" 200 " in answer else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
