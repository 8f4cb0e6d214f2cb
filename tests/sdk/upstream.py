"""A payment API that charges every request it reads and knows nothing of idempotency keys: without a gateway, a retry
is a second charge. Answers as Stripe does, so that Stripe's libraries can read it.

The order's name says what goes wrong with its first try, `lost-...` for example. Every charge goes into the ledger before
anything goes wrong, and the ledger is what counts."""

import json
import socket
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs

# Longer than the impatient clients' timeout (0.5 s), and over before their last try: Stripe's libraries ignore
# Retry-After and make their third try after 1.5 s at the earliest.
SLOW = 0.9
# Long enough that two requests which start together overlap.
LONG = 0.6
# Longer than the gateway's response_timeout, shorter than a patient client's.
HANG = 4.5


class Ledger:
    """What was charged, in order."""

    def __init__(self):
        self._lock = threading.Lock()
        self._charges = []
        self._tries = {}

    def begin(self, order):
        """Whether this is the order's first try."""
        with self._lock:
            self._tries[order] = self._tries.get(order, 0) + 1
            return self._tries[order] == 1

    def charge(self, order, key):
        """Executes a payment; the new payment's id."""
        with self._lock:
            number = len(self._charges) + 1
            self._charges.append({"id": f"pi_{number}", "order": order, "key": key})
            return f"pi_{number}"

    def charges(self, order=None):
        """All charges, or those of an order."""
        with self._lock:
            return [charge for charge in self._charges if order in (None, charge["order"])]


class Payments(BaseHTTPRequestHandler):
    """One connection of a client."""

    # Kept alive, as a real API keeps it.
    protocol_version = "HTTP/1.1"

    def do_POST(self):
        form = parse_qs(self.rfile.read(int(self.headers.get("Content-Length", 0))).decode())
        order = form["metadata[order]"][0]
        amount = int(form["amount"][0])
        first = self.server.ledger.begin(order)
        fault = order.split("-")[0] if first else "ok"
        if fault == "busy":
            # Nothing was done, and the field says so: this may be tried again.
            return self.answer(503, {"error": {"type": "api_error", "message": "busy"}}, {"Retry-After": "1"})
        payment = self.server.ledger.charge(order, self.headers.get("Idempotency-Key"))
        if fault == "lost":
            # The charge is made, and its answer never arrives.
            self.close_connection = True
            self.connection.shutdown(socket.SHUT_RDWR)
            return None
        if fault == "crash":
            return self.answer(500, {"error": {"type": "api_error", "message": "failed after the charge"}})
        time.sleep({"slow": SLOW, "long": LONG, "hang": HANG}.get(fault, 0))
        return self.answer(200, {
            "id": payment,
            "object": "payment_intent",
            "amount": amount,
            "currency": form["currency"][0],
            "status": "succeeded",
            "metadata": {"order": order},
        })

    def answer(self, status, body, fields=None):
        content = json.dumps(body).encode()
        try:
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
            self.send_header("Request-Id", "req_1")
            for name, value in (fields or {}).items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(content)
        except OSError:
            # The client has gone, which is what some scenarios are about.
            self.close_connection = True

    def log_message(self, *_):
        """The ledger is the log."""


class Upstream(ThreadingHTTPServer):
    """The API on a free port, with its ledger."""

    daemon_threads = True
    # More than socketserver's 5: a connection refused here would look like a fault of the gateway.
    request_queue_size = 128

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Payments)
        self.ledger = Ledger()
        self.url = f"http://127.0.0.1:{self.server_address[1]}"

    def start(self):
        threading.Thread(target=self.serve_forever, daemon=True).start()
        return self

    def handle_error(self, request, client_address):
        """A connection that breaks is no news here."""
