"""curl with --retry: one call a line, JSON in and JSON out."""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

# A patient client's timeout for one try; an impatient call sets its own.
PATIENCE = 80


def call(url, spec, scratch):
    body, head = scratch / "body", scratch / "head"
    head.unlink(missing_ok=True)
    command = [
        "curl", "--silent", "--verbose", "--fail", "--retry", "2", "--retry-all-errors",
        "--max-time", str(spec["timeout"] or PATIENCE), "--output", str(body), "--dump-header", str(head),
        "--header", "Authorization: Bearer sk_test_onceward", "--header", f"Idempotency-Key: {spec['key']}",
        "--data", f"amount={spec['amount']}&currency=eur", "--data-urlencode", f"metadata[order]={spec['order']}",
        f"{url}/v1/payment_intents",
    ]
    done = subprocess.run(command, capture_output=True, text=True)
    tries = sum(line.startswith("> POST ") for line in done.stderr.splitlines())
    # The header blocks of all tries, the last one last.
    blocks = head.read_text().strip().split("\n\n") if head.exists() else [""]
    first, *lines = blocks[-1].splitlines() or [""]
    fields = {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}
    status = int(first.split()[1]) if first else None
    result = {"status": status, "fields": fields, "tries": tries}
    if done.returncode == 0:
        return result | {"id": json.loads(body.read_text())["id"]}
    return result | {"error": f"exit {done.returncode}", "code": None}


def main(url):
    with tempfile.TemporaryDirectory() as scratch:
        for line in sys.stdin:
            print(json.dumps(call(url, json.loads(line), Path(scratch))), flush=True)


main(sys.argv[1])
