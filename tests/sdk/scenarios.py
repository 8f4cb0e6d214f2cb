"""The scenarios, driven through every client: first straight at the upstream as a control, then through gateways.
Prints a line for each; the last one is "N passed, N failed". Usage: scenarios.py ONCEWARD_BINARY."""

import collections
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Callable

from upstream import Upstream

HERE = Path(__file__).resolve().parent
CLIENTS = {
    "stripe-python": [sys.executable, HERE / "client_stripe.py"],
    "stripe-node": ["node", HERE / "client_stripe.mjs"],
    "requests": [sys.executable, HERE / "client_requests.py"],
    "curl": [sys.executable, HERE / "client_curl.py"],
}
# How often those that don't know Stripe-Should-Retry try where they get nothing but errors.
TRIES_MAX = {"requests": 4, "curl": 3}
# Only these know Stripe-Should-Retry, make up keys of their own, and tell error classes apart.
STRIPE = ("stripe-python", "stripe-node")
# An impatient client's timeout in seconds; see SLOW in upstream.py.
IMPATIENT = 0.5
# The whole run takes about a minute. Whatever hangs ends here.
DEADLINE = 300


class Children:
    """Processes that must not outlive this one."""

    def __init__(self):
        self.all = []

    def spawn(self, command, **options):
        child = subprocess.Popen([str(word) for word in command], text=True, **options)
        self.all.append(child)
        return child

    def kill(self):
        for child in self.all:
            child.kill()


@dataclass
class Order:
    """What is bought: one payment, however often it is asked for."""

    name: str
    key: str | None
    amount: int = 1000
    timeout: float | None = None


class Client:
    """A client library in a process of its own, as its users run it."""

    def __init__(self, children, name, url):
        self.name = name
        self.process = children.spawn([*CLIENTS[name], url], stdin=subprocess.PIPE, stdout=subprocess.PIPE)

    def pay(self, order):
        spec = {"order": order.name, "key": order.key, "amount": order.amount, "timeout": order.timeout}
        self.process.stdin.write(json.dumps(spec) + "\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        if not line:
            raise AssertionError(f"{self.name} died")
        result = json.loads(line)
        result["fields"] = {name.lower(): value for name, value in result["fields"].items()}
        return result


def expect(true, what):
    if not true:
        raise AssertionError(what)


def expect_paid(result, charges, replayed):
    expect("error" not in result, f"an error came back: {result}")
    expect(result["id"] == charges[0]["id"], f"{result['id']} came back, {charges[0]['id']} was executed")
    field = result["fields"].get("idempotent-replayed")
    expect(field == ("true" if replayed else None), f"Idempotent-Replayed is {field}")


def expect_uncertain(client, result, status):
    """A result that nobody knows surfaces as an error; Stripe's libraries are told not to try again, and don't."""
    expect("error" in result, f"a success came back: {result}")
    if client.name in STRIPE:
        expect(result["status"] == status and result["code"] == "outcome-uncertain", f"not uncertain: {result}")
        expect(result["fields"].get("stripe-should-retry") == "false", f"no Stripe-Should-Retry: {result}")
        # Not the class of a request that the user has to change.
        expect(result["error"] in ("APIError", "StripeAPIError"), f"another kind of error: {result}")
        expect(result["tries"] == 1, f"{result['tries']} tries")


@dataclass
class Scenario:
    """A story. Its fault is what the upstream does to the first try, see upstream.py. `play` does it with one or two
    processes of a client and gives their results; `check` says what results and charges must be."""

    name: str
    fault: str
    play: Callable
    check: Callable
    # Whether its retries charge twice without a gateway.
    doubles: bool = False

    def order_of(self, client):
        """A name of its own, so that the ledger tells what this scenario did with this client."""
        return f"{self.fault}-{client}-{SCENARIOS.index(self)}"


def once(first, _second, order):
    # Stripe's libraries make up a key and keep it for their retries; the others are given one.
    return [first.pay(Order(order, None if first.name in STRIPE else f"key-of-{order}"))]


def once_impatient(first, _second, order):
    return [first.pay(Order(order, None if first.name in STRIPE else f"key-of-{order}", timeout=IMPATIENT))]


def twice(first, second, order):
    """The second call is the user's own retry, later and elsewhere, with the key that was kept."""
    return [client.pay(Order(order, f"key-of-{order}")) for client in (first, second)]


def twice_changed(first, second, order):
    """The second call uses the key for another payment."""
    return [first.pay(Order(order, f"key-of-{order}")), second.pay(Order(order, f"key-of-{order}", amount=2000))]


def together(first, second, order):
    with ThreadPoolExecutor(2) as pool:
        return list(pool.map(lambda client: client.pay(Order(order, f"key-of-{order}")), (first, second)))


def check_paid(_client, results, charges):
    expect_paid(results[0], charges, replayed=False)
    expect(results[0]["tries"] == 1, f"{results[0]['tries']} tries")


def check_busy(_client, results, charges):
    expect_paid(results[0], charges, replayed=False)
    expect(results[0]["tries"] == 2, f"{results[0]['tries']} tries")


def check_lost(client, results, _charges):
    expect_uncertain(client, results[0], 502)
    if client.name not in STRIPE:
        expect(results[0]["tries"] == TRIES_MAX[client.name], f"{results[0]['tries']} tries")


def check_lost_twice(client, results, _charges):
    expect_uncertain(client, results[0], 502)
    expect_uncertain(client, results[1], 409)


def check_hang(client, results, _charges):
    expect_uncertain(client, results[0], 504)


def check_slow(_client, results, charges):
    expect_paid(results[0], charges, replayed=True)
    expect(results[0]["tries"] > 1, "it didn't have to try again")


def check_crash(_client, results, _charges):
    expect(results[0].get("error") and results[0]["status"] == 500, f"not the upstream's 500: {results[0]}")
    replayed = results[0]["fields"].get("idempotent-replayed")
    expect((replayed == "true") == (results[0]["tries"] > 1), f"Idempotent-Replayed is {replayed}: {results[0]}")


def check_replay(_client, results, charges):
    expect_paid(results[0], charges, replayed=False)
    expect_paid(results[1], charges, replayed=True)
    expect(results[1]["tries"] == 1, f"{results[1]['tries']} tries")


def check_changed(client, results, charges):
    expect_paid(results[0], charges, replayed=False)
    expect(results[1].get("error") and results[1]["status"] == 400, f"not refused: {results[1]}")
    if client.name in STRIPE:
        expect("IdempotencyError" in results[1]["error"], f"another kind of error: {results[1]}")
        expect(results[1]["tries"] == 1, f"{results[1]['tries']} tries")


def check_together(_client, results, charges):
    first, second = sorted(results, key=lambda result: "idempotent-replayed" in result["fields"])
    expect_paid(first, charges, replayed=False)
    expect_paid(second, charges, replayed=True)


SCENARIOS = [
    Scenario("a payment goes through", "ok", once, check_paid),
    Scenario("a payment that the upstream was too busy for is tried again", "busy", once, check_busy),
    Scenario("a lost answer surfaces as an error", "lost", once, check_lost, doubles=True),
    Scenario("a lost answer stays an error for a later retry", "lost", twice, check_lost_twice, doubles=True),
    Scenario("an upstream that never answers surfaces as an error", "hang", once, check_hang),
    Scenario("an impatient client gets the slow answer", "slow", once_impatient, check_slow, doubles=True),
    Scenario("an upstream's failure after the charge is its answer", "crash", once, check_crash),
    Scenario("a later retry gets the first answer", "ok", twice, check_replay, doubles=True),
    Scenario("a key is not used for another payment", "ok", twice_changed, check_changed),
    Scenario("two processes at once get one answer", "long", together, check_together, doubles=True),
]


class Gateway:
    """A real gateway on free ports, with an embedded store of its own."""

    def __init__(self, children, binary, mode, upstream):
        self.directory = tempfile.mkdtemp(prefix="onceward-sdk-")
        command = [
            binary, "run", "--config", HERE / f"{mode}.toml", "--upstream", upstream, "--listen", "127.0.0.1:0",
            "--admin", "127.0.0.1:0", "--store", f"file:{self.directory}/store", "--log-format", "json",
        ]
        # Nothing of the caller's environment may configure it.
        environment = {name: value for name, value in os.environ.items() if not name.startswith("ONCEWARD_")}
        self.process = children.spawn(command, stderr=subprocess.PIPE, env=environment)
        self.log, listening = [], threading.Event()
        threading.Thread(target=self._read_log, args=[listening], daemon=True).start()
        if not (listening.wait(30) and hasattr(self, "url")):
            raise SystemExit(f"the gateway doesn't serve: {''.join(self.log)}")

    def _read_log(self, listening):
        for line in self.process.stderr:
            self.log.append(line)
            if '"serving"' in line:
                told = json.loads(line)
                self.url, self.admin = f"http://{told['listen']}", told["admin"]
                listening.set()
        # It ended, so nobody needs to wait any longer.
        listening.set()

    def stop(self):
        """Ends it as an orchestrator does; its exit code."""
        self.process.send_signal(signal.SIGTERM)
        code = self.process.wait(30)
        shutil.rmtree(self.directory)
        return code


class Report:
    """What passed and what failed, a line each."""

    def __init__(self):
        self._lock = threading.Lock()
        self.passed = self.failed = 0

    def line(self, run, client, story, fault=None):
        with self._lock:
            self.passed += fault is None
            self.failed += fault is not None
            word = "ok    " if fault is None else "FAILED"
            print(f"{word} {run:8} {client:14} {story}{f': {fault}' if fault else ''}", flush=True)

    def claim(self, run, client, story, check):
        try:
            check()
        except AssertionError as fault:
            self.line(run, client, story, str(fault))
        else:
            self.line(run, client, story)


def play_all(children, url, done):
    """Plays every scenario with every client, the clients beside each other; `done` hears of each."""
    def with_client(name):
        first, second = Client(children, name, url), Client(children, name, url)
        for scenario in SCENARIOS:
            done(scenario, first, scenario.play(first, second, scenario.order_of(name)))

    with ThreadPoolExecutor(len(CLIENTS)) as pool:
        # list, so that an error in a thread is one here.
        list(pool.map(with_client, CLIENTS))


def control(children, report):
    """Without a gateway the same faults charge twice; otherwise the scenarios would prove nothing."""
    upstream = Upstream().start()

    def done(scenario, client, _results):
        if scenario.doubles:
            times = len(upstream.ledger.charges(scenario.order_of(client.name)))
            report.claim("control", client.name, f"charged {times} times, without a gateway: {scenario.name}",
                         lambda: expect(times > 1, "the fault doesn't bite"))

    play_all(children, upstream.url, done)


def through_gateway(children, report, binary, mode):
    """The same through a gateway: nothing is charged twice, and every client hears what happened."""
    upstream = Upstream().start()
    gateway = Gateway(children, binary, mode, upstream.url)

    def done(scenario, client, results):
        charges = upstream.ledger.charges(scenario.order_of(client.name))

        def check():
            expect(len(charges) == 1, f"charged {len(charges)} times")
            scenario.check(client, results, charges)

        report.claim(mode, client.name, scenario.name, check)

    play_all(children, gateway.url, done)

    def nothing_twice():
        keys = collections.Counter(charge["key"] for charge in upstream.ledger.charges())
        expect(None not in keys, "something was executed without a key")
        twice = [key for key, times in keys.items() if times > 1]
        expect(not twice, f"executed more than once: {twice}")

    def uncertain_is_listed():
        listed = subprocess.run(
            [binary, "operations", "list", "--state", "uncertain", "--json", "--admin", gateway.admin],
            capture_output=True, text=True, timeout=30,
        )
        expect(listed.returncode == 0, f"exit {listed.returncode}: {listed.stderr}")
        wanted = sum(scenario.fault in ("lost", "hang") for scenario in SCENARIOS) * len(CLIENTS)
        expect(len(json.loads(listed.stdout)) == wanted, f"not {wanted} operations: {listed.stdout}")

    def stops():
        code = gateway.stop()
        expect(code == 0, f"exit {code}: {''.join(gateway.log[-5:])}")

    everything = f"all {len(upstream.ledger.charges())} payments"
    report.claim(mode, everything, "no key was executed more than once", nothing_twice)
    report.claim(mode, "operator", "sees every operation whose outcome is uncertain", uncertain_is_listed)
    report.claim(mode, "operator", "stops the gateway, and nothing is left open", stops)


def main(binary):
    children, report = Children(), Report()

    def end(number, _frame):
        # Threads wait for their children's words, so the children go first.
        children.kill()
        raise SystemExit(f"ended by signal {number} (SIGALRM: not done within {DEADLINE} s)")

    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGALRM):
        signal.signal(number, end)
    signal.alarm(DEADLINE)
    try:
        control(children, report)
        for mode in ("reject", "wait"):
            through_gateway(children, report, binary, mode)
    finally:
        children.kill()
    print(f"{report.passed} passed, {report.failed} failed")
    return 1 if report.failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
