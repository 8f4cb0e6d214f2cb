"""Stripe's Python library, as its users set it up: one call a line, JSON in and JSON out."""

import json
import sys

import stripe

# The library's own default; an impatient call sets its own.
PATIENCE = 80


class Counting(stripe.RequestsClient):
    """The library's own HTTP client, which also counts its tries."""

    tries = 0

    def request(self, *args, **kwargs):
        self.tries += 1
        return super().request(*args, **kwargs)


def call(http, client, spec):
    http.tries = 0
    options = {"idempotency_key": spec["key"]} if spec["key"] else {}
    params = {"amount": spec["amount"], "currency": "eur", "metadata": {"order": spec["order"]}}
    try:
        intent = client.v1.payment_intents.create(params, options)
    except stripe.StripeError as error:
        # Of most errors the library doesn't set `code`, but it keeps the body.
        code = (error.json_body or {}).get("error", {}).get("code")
        fields = dict(error.headers or {})
        return {"error": type(error).__name__, "status": error.http_status, "code": code, "fields": fields}
    return {"id": intent.id, "status": 200, "fields": dict(intent.last_response.headers)}


def main(url):
    clients = {}
    for line in sys.stdin:
        spec = json.loads(line)
        patience = spec["timeout"] or PATIENCE
        if patience not in clients:
            http = Counting(timeout=patience)
            client = stripe.StripeClient(
                "sk_test_onceward", base_addresses={"api": url}, max_network_retries=2, http_client=http
            )
            clients[patience] = http, client
        http, client = clients[patience]
        result = call(http, client, spec)
        print(json.dumps(result | {"tries": http.tries}), flush=True)


main(sys.argv[1])
