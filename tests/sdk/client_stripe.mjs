// Stripe's Node.js library, as its users set it up: one call a line, JSON in and JSON out.

import { createRequire } from "node:module";
import { createInterface } from "node:readline";

// The library is not beside this file, where an import would look for it.
const Stripe = createRequire(`${process.env.SDK_HOME}/`)("stripe");

const url = new URL(process.argv[2]);
const clients = new Map();

// The library's own HTTP client, which also counts its tries.
function counting() {
  const http = Stripe.createNodeHttpClient();
  const makeRequest = http.makeRequest.bind(http);
  http.tries = 0;
  http.makeRequest = (...args) => {
    http.tries += 1;
    return makeRequest(...args);
  };
  return http;
}

function clientFor(timeout) {
  if (!clients.has(timeout)) {
    const httpClient = counting();
    const options = { host: url.hostname, port: url.port, protocol: "http", maxNetworkRetries: 2, httpClient };
    // Without a timeout of its own, a call has the library's.
    if (timeout) options.timeout = timeout * 1000;
    clients.set(timeout, { http: httpClient, stripe: new Stripe("sk_test_onceward", options) });
  }
  return clients.get(timeout);
}

async function call(spec) {
  const { http, stripe } = clientFor(spec.timeout);
  http.tries = 0;
  const options = spec.key ? { idempotencyKey: spec.key } : {};
  const params = { amount: spec.amount, currency: "eur", metadata: { order: spec.order } };
  try {
    const intent = await stripe.paymentIntents.create(params, options);
    return { id: intent.id, status: 200, fields: intent.lastResponse.headers, tries: http.tries };
  } catch (error) {
    const { type, statusCode: status = null, code, headers: fields = {} } = error;
    return { error: type ?? String(error), status, code, fields, tries: http.tries };
  }
}

for await (const line of createInterface({ input: process.stdin })) {
  console.log(JSON.stringify(await call(JSON.parse(line))));
}
