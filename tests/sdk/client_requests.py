"""`requests` with urllib3's Retry, set up to retry POST, as many payment clients are: one call a line, JSON in and
JSON out."""

import json
import sys

import requests
from requests.adapters import HTTPAdapter
from urllib3.util.retry import Retry

# A patient client's timeout; an impatient call sets its own.
PATIENCE = 80


class Counting(Retry):
    """The library's own retries, which also count the tries: a failed call doesn't tell them otherwise."""

    tries = 0

    def increment(self, *args, **kwargs):
        Counting.tries += 1
        return super().increment(*args, **kwargs)


def call(session, url, spec):
    # The first try, and then one for each increment; the increment that exhausts them is no try.
    Counting.tries = 1
    form = {"amount": spec["amount"], "currency": "eur", "metadata[order]": spec["order"]}
    fields = {"Authorization": "Bearer sk_test_onceward", "Idempotency-Key": spec["key"]}
    try:
        answer = session.post(
            f"{url}/v1/payment_intents", data=form, headers=fields, timeout=spec["timeout"] or PATIENCE
        )
    except requests.RequestException as error:
        return {"error": type(error).__name__, "status": None, "code": None, "fields": {}, "tries": Counting.tries - 1}
    result = {"status": answer.status_code, "fields": dict(answer.headers), "tries": Counting.tries}
    body = answer.json()
    if answer.ok:
        return result | {"id": body["id"]}
    return result | {"error": "HTTPError", "code": body["error"].get("code")}


def main(url):
    retry = Counting(total=3, backoff_factor=0.5, allowed_methods=["POST"], status_forcelist=[409, 502, 503])
    session = requests.Session()
    session.mount("http://", HTTPAdapter(max_retries=retry))
    for line in sys.stdin:
        print(json.dumps(call(session, url, json.loads(line))), flush=True)


main(sys.argv[1])
