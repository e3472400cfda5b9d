"""A server for the tests of the runtime: stands on its sockets as the inference server does, without a model.

`--say TEXT` is the answer; `--broken` ends at once; `--mute` never becomes healthy; `--killed` is killed at its
start. `/die`, `/hang` and `/grow` do so, `/env` shows the environment, `/print` prints it, `/slow` takes half a second.
"""

import argparse
import json
import os
import signal
import socket
import socketserver
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler

parser = argparse.ArgumentParser()
parser.add_argument("--say", default="one")
parser.add_argument("--broken", action="store_true")
parser.add_argument("--mute", action="store_true")
parser.add_argument("--killed", action="store_true")
parser.add_argument("--child", action="store_true")
parser.add_argument("--host", default="127.0.0.1")
parser.add_argument("--port", type=int)
parser.add_argument("--socket")
parser.add_argument("--fd", type=int)
parser.add_argument("--private-fd", type=int)
parser.add_argument("--control-fd", type=int)
options = parser.parse_args()
hanging = threading.Event()
hoard = []


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        if self.path == "/die":
            os._exit(3)
        if self.path == "/hang":
            hanging.set()
        if self.path == "/grow":
            hoard.append(b"x" * 80_000_000)
        if self.path == "/print":
            print(json.dumps(dict(os.environ)), flush=True)
        if self.path == "/slow":
            time.sleep(0.5)
        if self.path == "/health" and (options.mute or hanging.is_set()):
            time.sleep(60)
        body = (json.dumps(dict(os.environ)) if self.path == "/env" else options.say).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_arguments):
        pass

    def address_string(self):
        return "somebody"  # peers of Unix sockets have no address


class Server(socketserver.ThreadingTCPServer):
    daemon_threads = False
    allow_reuse_address = True


def serve(listening):
    server = Server(("127.0.0.1", 0), Handler, bind_and_activate=False)
    server.socket.close()
    server.socket = listening
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    return server


def leave(server):
    server.shutdown()
    server.server_close()  # waits for what is under way
    os._exit(0)


print("started", options.say, flush=True)
if options.broken:
    print("ModuleNotFoundError: No module named 'nothing'", file=sys.stderr, flush=True)
    sys.exit(7)
if options.killed:
    os.kill(os.getpid(), signal.SIGKILL)
    sys.exit(137)  # as the first process of a container, which no signal of its own reaches
if options.fd is None:
    if options.child and os.fork():  # as servers with workers do: the child has the port
        os.wait()
        sys.exit(1)
    if options.socket:
        listening = socket.socket(socket.AF_UNIX)
        os.umask(0)
        listening.bind(options.socket)
        listening.listen(100)
    else:
        listening = socket.create_server((options.host, options.port))
    own = serve(listening)
    signal.signal(signal.SIGTERM, lambda *_: threading.Thread(target=leave, args=(own,)).start())
    threading.Event().wait(600)
shared = socket.socket(fileno=options.fd)
shared.setblocking(False)
serve(socket.socket(fileno=options.private_fd))
accepting = None
for line in os.fdopen(options.control_fd, "rb", 0):
    if line == b"accept\n":
        accepting = serve(shared)
    if line == b"drain\n":
        if accepting:
            accepting.shutdown()
            accepting.server_close()
        break
