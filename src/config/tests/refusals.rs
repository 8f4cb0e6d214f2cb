//! Tests of refused configurations and their messages.

use super::*;

/// Lines of a route, the key with the fault, and a part of the message.
const ROUTE_FAULTS: &[(&str, &str, &str)] = &[
    (
        "retention = \"60d\"\nunsettled_retention = \"30d\"",
        "unsettled_retention",
        "shorter than retention, tombstone and lease",
    ),
    ("lease = \"900ms\"", "lease", "shorter than a second"),
    ("on_uncertain = \"ask\"", "on_uncertain", "expected \"hold\" or \"forward\" or \"probe\""),
    ("on_uncertain = \"probe\"", "probe", "needs probe"),
    ("probe = { path = \"/p/{key}\" }", "probe", "add on_uncertain"),
    ("on_uncertain = \"probe\"\nprobe = { method = \"GET\" }", "probe.path", "a probe needs path"),
    (
        "on_uncertain = \"probe\"\nprobe = { path = \"/p\" }",
        "probe.path",
        "a path with {key} in it",
    ),
    (
        "on_uncertain = \"probe\"\nprobe = { path = \"//p/{key}\" }",
        "probe.path",
        "a path with {key} in it",
    ),
    (
        "on_uncertain = \"probe\"\nprobe = { path = \"/p/../{key}\" }",
        "probe.path",
        "a path with {key} in it",
    ),
    (
        "on_uncertain = \"probe\"\nprobe = { path = \"/p;of={key}\" }",
        "probe.path",
        "a path with {key} in it",
    ),
    (
        "on_uncertain = \"probe\"\nprobe = { path = \"/p/{key}\", method = \"POST\" }",
        "probe.method",
        "safe method",
    ),
    (
        "on_uncertain = \"probe\"\nprobe = { path = \"/p/{key}\", found = [\"ok\"] }",
        "probe",
        "`ok` is not a status",
    ),
    (
        "on_uncertain = \"probe\"\nprobe = { path = \"/p/{key}\", absent = [\"200\"] }",
        "probe",
        "two of the three",
    ),
    (
        "on_uncertain = \"probe\"\nprobe = { path = \"/p/{key}\", found_if = \"data\" }",
        "probe.found_if",
        "JSON pointer",
    ),
    (
        "on_uncertain = \"probe\"\nprobe = { path = \"/p/{key}\", headers = { Host = \"h\" } }",
        "probe.headers.Host",
        "can be set for",
    ),
    (
        "on_uncertain = \"probe\"\nprobe = { path = \"/p/{key}\", headers = { A = {} } }",
        "probe.headers.A.env",
        "env",
    ),
    ("upstream_key = { header = \"A\", body = \"/k\" }", "upstream_key.body", "not both"),
    ("upstream_key = { header = \"A\", max_length = 10 }", "upstream_key.max_length", "22"),
    (
        "key = { derive = [\"path\"] }\nupstream_key = { max_length = 40 }",
        "upstream_key.header",
        "a derived key is in no field",
    ),
    ("lease = \"1500ms\"", "lease", "third of the lease"),
    ("lease = \"-1s\"", "lease", "expected a duration such as \"30s\", found \"-1s\""),
    ("lease = \"11000y\"", "lease", "limit of ten years"),
    ("lease = \"1us\"", "lease", "shorter than a millisecond"),
    ("lease = 30", "lease", "expected a duration such as \"30s\", found an integer"),
    ("retention = \"0s\"", "retention", "above zero"),
    ("profile = \"strype\"", "profile", "there are acp, adyen, amazon-pay, "),
    ("upstream = \"other\"", "upstream", "there is no upstream named \"other\""),
    ("caller = \"scope\"", "caller", "needs a scope"),
    ("caller = \"everybody\"", "caller", "expected \"scope\""),
    ("caller = {}", "caller", "headers"),
    ("caller = { headers = [] }", "caller.headers", "at least one"),
    (
        "caller = { cookie = \"a b\" }",
        "caller.cookie",
        "expected a cookie's name such as \"session\", found \"a b\"",
    ),
    ("caller = { cookie = \"a=\" }", "caller.cookie", "expected a cookie's name"),
    ("caller = { cookie = [\"a\"] }", "caller.cookie", "found a list"),
    ("caller = { headers = [\"A\"], cookie = \"a\" }", "caller.cookie", "not by both"),
    ("scope = { cookie = \"\" }", "scope.cookie", "expected a cookie's name"),
    ("scope = { cookie = \"a\", header = \"A\" }", "scope.cookie", "exactly one of"),
    ("scope = {}", "scope", "expected a table such as"),
    ("scope = { header = \"A\", headers = [\"B\"] }", "scope.headers", "exactly one of"),
    ("scope = { jwt = { jwks = \"f\" }, header = \"A\" }", "scope.jwt", "exactly one of"),
    (
        "scope = { client_cert = \"subject\", header = \"A\" }",
        "scope.client_cert",
        "exactly one of",
    ),
    (
        "scope = { client_cert = \"subject\" }",
        "scope.client_cert",
        "only if client_ca is set under [tls]",
    ),
    ("scope = { client_cert = \"issuer\" }", "scope.client_cert", "expected \"subject\""),
    ("scope = { jwt = \"f\" }", "scope.jwt", "found a string"),
    ("scope = { jwt = {} }", "scope.jwt", "needs jwks"),
    ("scope = { jwt = { jwks = \"\" } }", "scope.jwt.jwks", "a file's name, or a url"),
    ("scope = { jwt = { jwks = \"ftp://a/b\" } }", "scope.jwt.jwks", "a file's name, or a url"),
    (
        "scope = { jwt = { jwks = \"https://u:hunter2@a/b\" } }",
        "scope.jwt.jwks",
        "without credentials",
    ),
    ("scope = { jwt = { jwks = \"https://a/b#c\" } }", "scope.jwt.jwks", "a file's name, or a url"),
    ("scope = { jwt = { jwks = \"f\", claim = \"\" } }", "scope.jwt.claim", "a claim's name"),
    ("scope = { jwt = { jwks = \"f\", issuer = 1 } }", "scope.jwt.issuer", "found an integer"),
    ("scope = { jwt = { jwks = \"f\", aud = \"a\" } }", "scope.jwt.aud", "no such key"),
    (
        "scope = { jwt = { jwks = \"f\", header = \"a b\" } }",
        "scope.jwt.header",
        "a header field's name",
    ),
    ("scope = { jwt = { jwks = \"f\", ca_file = \"ca\" } }", "scope.jwt.ca_file", "jwks is a file"),
    (
        "scope = { jwt = { jwks = \"f\" } }\ncaller = { headers = [\"A\"] }",
        "caller",
        "remove caller",
    ),
    ("scope = \"X-Api-Key\"", "scope", "found a string"),
    ("key = { header = \"Host\" }", "key.header", "Host can't be a key"),
    ("key = { header = \"X-Forwarded-For\" }", "key.header", "sets or drops it"),
    ("upstream_key = { header = \"Via\" }", "upstream_key.header", "sets or drops it"),
    (
        "upstream_key = { header = \"Proxy-Authorization\" }",
        "upstream_key.header",
        "sets or drops it",
    ),
    ("upstream_key = { header = \"Host\" }", "upstream_key.header", "Host can't be a key"),
    ("key = { header = \"content-length\" }", "key.header", "belongs to one connection"),
    ("key = { header = \"Transfer-Encoding\" }", "key.header", "belongs to one connection"),
    ("key = { header = \"CONNECTION\" }", "key.header", "belongs to one connection"),
    ("key = { header = \"a b\" }", "key.header", "expected a header field's name"),
    ("key = { body = \"idempotency_key\" }", "key.body", "expected a JSON pointer"),
    ("key = { header = \"A\", derive = [\"path\"] }", "key.derive", "remove these"),
    ("key = { derive = [] }", "key.derive", "at least one part"),
    ("key = { form = \"a\", derive = [\"path\"] }", "key.derive", "remove these"),
    ("key = { form = \"/a\" }", "key.form", "without a slash"),
    ("key = { form = \"\" }", "key.form", "a form field's name"),
    ("key = { derive = [\"form:txn_id\"] }", "key.derive[0]", "\"form:/NAME\""),
    ("key = { derive = [\"form:/order/id\"] }", "key.derive[0]", "\"form:/NAME\""),
    ("key = { derive = [\"form:/\"] }", "key.derive[0]", "\"form:/NAME\""),
    (
        "key = { form = \"a\" }\nupstream_key = { max_length = 40 }",
        "upstream_key.header",
        "forms are not rewritten",
    ),
    ("key = { derive = [\"method\"] }", "key.derive[0]", "\"query:NAME\""),
    ("key = { derive = [\"path\"], required = false }", "key.required", "always required"),
    (
        "key = { derive = [\"path\"], max_length = 9 }",
        "key.max_length",
        "not used for a derived key",
    ),
    ("echo_key = \"yes\"", "echo_key", "true or false, found a string"),
    ("echo_key = true\nkey = { body = \"/key\" }", "echo_key", "no header field with a key"),
    ("echo_key = true\nkey = { derive = [\"path\"] }", "echo_key", "no header field with a key"),
    ("identity = []", "identity", "the route is always included"),
    ("identity = [\"key\"]", "identity[0]", "\"route\" or \"path\""),
    ("identity = \"path\"", "identity", "found a string"),
    ("key = { min_length = 0 }", "key.min_length", "from 1 to 4096"),
    (
        "key = { min_length = 23, max_length = 22 }",
        "key.min_length",
        "min_length (23) is more than max_length (22)",
    ),
    (
        "key = { min_length = 256 }",
        "key.min_length",
        "more than max_length (255): no key would be accepted",
    ),
    (
        "key = { derive = [\"path\"], min_length = 9 }",
        "key.min_length",
        "not used for a derived key",
    ),
    ("key = { max_length = 0 }", "key.max_length", "from 1 to 4096"),
    ("key = { syntax = \"uuid7\" }", "key.syntax", "\"uuid4\""),
    ("key = \"X-Key\"", "key", "found a string"),
    (
        "fingerprint = { body = \"raw\", ignore = [\"/a\"] }",
        "fingerprint.ignore",
        "only members of JSON bodies",
    ),
    ("fingerprint = { ignore = [\"a\"] }", "fingerprint.ignore[0]", "expected a JSON pointer"),
    ("store_status = [\"2xx\", \"6xx\"]", "store_status[1]", "is not a status"),
    (
        "store_status = [\"500\"]\nuncertain_status = [\"500\"]",
        "uncertain_status[0]",
        "two of the three status lists",
    ),
    ("store_status = [200]", "store_status[0]", "found an integer"),
    ("mismatch_status = 200", "mismatch_status", "from 400 to 499"),
    ("methods = [\"post\"]", "methods[0]", "expected a method such as \"POST\""),
    ("methods = [\"CONNECT\"]", "methods[0]", "expected a method"),
    ("methods = []", "methods", "at least one"),
    ("methods = \"POST\"", "methods", "found a string"),
    ("drop_headers = [\"a b\"]", "drop_headers[0]", "header field"),
    ("redact = [\"card\"]", "redact[0]", "expected a JSON pointer"),
    ("redact = [\"\"]", "redact[0]", "expected a JSON pointer"),
    ("redact = \"/card\"", "redact", "found a string"),
    ("fields = \"request:/order/id\"", "fields", "found a string"),
    ("fields = { order = \"/order/id\" }", "fields.order", "a body and a JSON pointer"),
    ("fields = { order = \"header:/id\" }", "fields.order", "a body and a JSON pointer"),
    ("fields = { order = \"request:id\" }", "fields.order", "a body and a JSON pointer"),
    ("fields = { order = [\"request:/id\"] }", "fields.order", "found a list"),
    (
        "fields = { \"the order\" = \"request:/id\" }",
        "fields.the order",
        "1 to 32 letters, digits, _ and -",
    ),
    (
        "fields = { a123456789a123456789a123456789abc = \"request:/id\" }",
        "fields.a123456789a123456789a123456789abc",
        "1 to 32",
    ),
    (
        "fields = { a = \"request:/a\", b = \"request:/a\", c = \"request:/a\", \
         d = \"request:/a\", e = \"request:/a\", f = \"request:/a\", g = \"request:/a\", \
         h = \"request:/a\", i = \"request:/a\" }",
        "fields",
        "at most 8",
    ),
    (
        "redact = [\"/card\"]\nfields = { number = \"response:/card/number\" }",
        "fields.number",
        "redact removes /card before it is stored",
    ),
    (
        "redact = [\"/card\"]\nfields = { card = \"request:/card\" }",
        "fields.card",
        "redact removes /card before it is stored",
    ),
    ("name = \"\"", "name", "expected a name"),
    ("errors = \"strip\"", "errors", "\"problem\" or \"stripe\""),
    ("cors = \"*\"", "cors", "found a string"),
    ("cors = {}", "cors", "needs origins"),
    ("cors = { origins = [] }", "cors.origins", "expected a list of origins"),
    ("cors = { origins = [\"shop.example\"] }", "cors.origins[0]", "with a scheme"),
    ("cors = { origins = [\"null\"] }", "cors.origins[0]", "every sandboxed page"),
    (
        "cors = { origins = [\"https://shop.example/\"] }",
        "cors.origins[0]",
        "without a slash at its end",
    ),
    ("cors = { origins = [\"https://Shop.example\"] }", "cors.origins[0]", "in lower case"),
    ("cors = { origins = [\"https://shop.example:443\"] }", "cors.origins[0]", "usual port"),
    (
        "cors = { origins = [\"https://*.shop.example\"] }",
        "cors.origins[0]",
        "a scheme, a host and perhaps a port",
    ),
    (
        "cors = { origins = [\"https://\"] }",
        "cors.origins[0]",
        "a scheme, a host and perhaps a port",
    ),
    ("cors = { origins = [\"*\", \"https://shop.example\"] }", "cors.origins", "remove the others"),
    ("cors = { origins = [\"*\"], credentials = true }", "cors.credentials", "list the origins"),
    ("cors = { origins = [\"*\"], credential = true }", "cors.credential", "no such key"),
    (
        "cors = { origins = [\"*\"] }\nmethods = [\"POST\", \"OPTIONS\"]\n\
         key = { required = true }",
        "cors",
        "a browser's preflight has no key",
    ),
    ("case = \"lower\"", "case", "expected \"sensitive\" or \"insensitive\""),
    ("stripe_should_retry = \"yes\"", "stripe_should_retry", "true or false, found a string"),
];

#[test]
fn a_route_that_cannot_be_meant_is_refused() {
    for (lines, key, piece) in ROUTE_FAULTS {
        let fault = fault_of(load_route(lines));
        assert!(
            fault.starts_with(&format!("routes[0].{key}: ")) && fault.contains(piece),
            "{lines}\n{fault}"
        );
    }
}

#[test]
fn a_path_that_can_never_match_is_refused() {
    for path in [
        "payments", "", "/a//b", "/a/../b", "/a/.", "/a?b", "/a#b", "/a b", "/{", "/{}", "/{*}",
        "/{a}{b}", "/{*a}/b", "/%41", "/%4", "/%zz", "/\u{e4}", "/a%3Ab", "/a%2Bb",
    ] {
        let fault = fault_of(load(&format!("[[routes]]\nname = \"r\"\npath = {path:?}")));
        assert!(fault.starts_with("routes[0].path: "), "{path}: {fault}");
    }
    for path in [
        "/",
        "/a",
        "/a/",
        "/v1/{id}",
        "/v1/{id}/refunds",
        "/v1/{*rest}",
        "/{id}.json",
        "/a%2Fb",
        "/a:b",
    ] {
        load(&format!("[[routes]]\npath = {path:?}")).unwrap_or_else(|faults| panic!("{faults}"));
    }
}

/// Checks that each text has one fault, at this key and with this piece of text.
#[track_caller]
fn are_refused(cases: &[(&str, &str, &str)]) {
    for (text, key, piece) in cases {
        let fault = fault_of(load(text));
        assert!(fault.starts_with(&format!("{key}: ")) && fault.contains(piece), "{text}\n{fault}");
    }
}

#[test]
fn routes_and_proxies_that_contradict_themselves_are_refused() {
    are_refused(&[
        ("routes = []", "routes", "protects nothing"),
        ("[[routes]]", "routes[0].path", "needs a path"),
        (
            "[[routes]]\npath = \"/a\"\n[[routes]]\npath = \"/a\"",
            "routes[1].path",
            "a second route is named \"/a\"",
        ),
        (
            "[[routes]]\npath = \"/a\"\n[[routes]]\npath = \"/b\"\nname = \"/a\"",
            "routes[1].name",
            "a second route",
        ),
        (
            "[store]\ntimeout = \"10s\"",
            "store.timeout",
            "the lease (30s) has to be longer than 3 times",
        ),
        ("proxy_protocol = true", "proxy_protocol", "needs trusted_proxies"),
        ("proxy_protocol = \"v2\"", "proxy_protocol", "true or false"),
        ("trusted_proxies = [\"lb\"]", "trusted_proxies[0]", "an address or a network"),
    ]);
}

#[test]
fn secrets_and_keys_without_a_source_are_refused() {
    are_refused(&[
        ("[hashing]", "hashing", "needs secrets"),
        ("[hashing]\nsecrets = []", "hashing.secrets", "at least one secret"),
        ("[hashing]\nsecrets = [{}]", "hashing.secrets[0].env", "the secret of hashing"),
        (
            "[hashing]\nsecrets = [{ env = \"A\", file = \"b\" }]",
            "hashing.secrets[0].env",
            "not both",
        ),
        (
            "[hashing]\nsecrets = [{ env = \"A\" }, { env = \"A\" }]",
            "hashing.secrets[1]",
            "a second time",
        ),
        (
            "[hashing]\nsecrets = [{ env = \"A\", id = \"b\" }]",
            "hashing.secrets[0].id",
            "no such key",
        ),
        ("[encryption]", "encryption", "needs keys"),
        ("[encryption]\nkeys = []", "encryption.keys", "at least one key"),
        ("[encryption]\nkeys = [{ env = \"A\" }]", "encryption.keys[0].id", "needs an id"),
        ("[encryption]\nkeys = [{ id = \"a\" }]", "encryption.keys[0].env", "the secret of a key"),
        (
            "[encryption]\nkeys = [{ id = \"a\", env = \"A\" }, { id = \"a\", env = \"B\" }]",
            "encryption.keys[1]",
            "a second key",
        ),
        ("[tls]\ncert = \"a.pem\"", "tls.key", "TLS needs key"),
        ("[tls]\ncert = \"a.pem\"\nkey = \"a.pem\"\nca = \"b\"", "tls.ca", "no such key"),
    ]);
}

#[test]
fn faulty_observers_are_refused() {
    are_refused(&[
        (
            "[access_log]\nformat = \"xml\"",
            "access_log.format",
            "\"json\" or \"combined\" or \"off\"",
        ),
        ("[access_log]\npath = \"\"", "access_log.path", "a file's name, or"),
        ("[access_log]\nfile = \"a\"", "access_log.file", "no such key"),
        ("[tracing]\notlp_endpoint = \"collector:4318\"", "tracing.otlp_endpoint", "a url such as"),
        ("[tracing]\nsample_ratio = 1.1", "tracing.sample_ratio", "from 0 to 1"),
        ("[tracing]\nsample_ratio = \"half\"", "tracing.sample_ratio", "found a string"),
        (
            "[tracing]\nheaders = { \"a b\" = \"x\" }",
            "tracing.headers.a b",
            "can be set for a collector",
        ),
        (
            "[tracing]\nheaders = { A = { env = \"A\", file = \"b\" } }",
            "tracing.headers.A.env",
            "not both",
        ),
    ]);
}

#[test]
fn faulty_stores_are_refused() {
    are_refused(&[
        ("[store]\nack = \"replicas:0\"", "store.ack", "replicas:N"),
        ("[store]\nack = \"disk\"", "store.ack", "replicas:N"),
        ("[store]\nnamespace = \"a:b\"", "store.namespace", "1 to 64 letters, digits, _ or -"),
        (
            "[store]\nurl = \"redis://h?namespace=a:b\"",
            "store.url",
            "1 to 64 letters, digits, _ or -",
        ),
        ("[store]\ndurability = \"lax\"", "store.durability", "\"warn\" or \"strict\""),
        ("[store]\nlocal_cache = \"much\"", "store.local_cache", "a size such as"),
        ("[store]\nlocal_cache = 64", "store.local_cache", "found an integer"),
        ("[store]\nformat = 0", "store.format", "a whole number from 1 to 3"),
        ("[store]\nformat = 4", "store.format", "a whole number from 1 to 3"),
        ("[store]\nformat = \"2\"", "store.format", "a whole number"),
        (
            "[store]\nurl = \"redis+cluster://a:1\"\nlocal_cache = \"1MiB\"",
            "store.local_cache",
            "not with a cluster",
        ),
    ]);
}

#[test]
fn faulty_addresses_and_upstreams_are_refused() {
    are_refused(&[
        ("admin = \"0.0.0.0:8081\"", "admin", "not a loopback address"),
        ("admin = \"127.0.0.1:8080\"", "admin", "the same address as listen"),
        (
            "[upstreams.default]\nurl = \"http://a\"",
            "upstreams.default",
            "is reserved for [upstream]",
        ),
        ("[upstreams.a]", "upstreams.a.url", "needs a url"),
        ("[upstream]\nurl = \"http://a/v1\"", "upstream.url", "has no path"),
        ("[upstream]\nurl = \"http://a?b\"", "upstream.url", "has no path"),
        ("[upstream]\nurl = \"http://u@a\"", "upstream.url", "credentials"),
        ("[upstream]\nurl = \"ftp://a\"", "upstream.url", "http or https"),
        ("[upstream]\nurl = \"a:9000\"", "upstream.url", "http or https"),
        ("[upstream]\nurl = \"http://a:99999\"", "upstream.url", "http or https"),
        (
            "[upstreams.a]\nurl = \"https://a\"\nhttp2 = \"prior-knowledge\"",
            "upstreams.a.http2",
            "without TLS",
        ),
        (
            "[upstream]\nurl = \"https://a\"\ncert = \"c.pem\"",
            "upstream.key",
            "cert is not used without key",
        ),
        (
            "[upstreams.a]\nurl = \"https://a\"\nkey = \"k.pem\"",
            "upstreams.a.cert",
            "key is not used without cert",
        ),
        (
            "[store]\nurl = \"rediss://a\"\ncert = \"c.pem\"",
            "store.key",
            "cert is not used without key",
        ),
        ("[upstream]\nmax_connection_age = \"0s\"", "upstream.max_connection_age", "above zero"),
        ("[upstream]\nrewrite_location = \"yes\"", "upstream.rewrite_location", "true or false"),
        ("[upstream]\nurl = \"http://:80\"", "upstream.url", "http or https"),
    ]);
}

#[test]
fn faulty_limits_and_read_models_are_refused() {
    are_refused(&[
        ("[limits]\nbuffered_bytes = \"1MiB\"", "limits.buffered_bytes", "no room"),
        ("[limits]\nheader_bytes = \"4KiB\"", "limits.header_bytes", "\"8192B\""),
        ("[limits]\nrequest_body = \"1EiB\"", "limits.request_body", "\"1TiB\""),
        ("[limits]\nin_flight = -1", "limits.in_flight", "from 1 to"),
        ("[limits]\nin_flight = 1.5", "limits.in_flight", "found a float"),
        ("limits = 1", "limits", "found an integer"),
        ("[read_model]\npath = \"\"", "read_model.path", "a file's name"),
        (
            "[read_model]\nproject = false",
            "read_model.project",
            "no other process can read this store",
        ),
        (
            "[store]\nurl = \"redis://localhost\"\n[read_model]\nproject = false",
            "read_model.project",
            "set path to the file that both processes open",
        ),
    ]);
}

#[test]
fn faulty_admin_tokens_are_refused() {
    are_refused(&[
        (
            "[admin_auth]\ntokens = [{ role = \"read\", env = \"A\" }]",
            "admin_auth.tokens[0].name",
            "needs a name",
        ),
        (
            "[admin_auth]\ntokens = [{ name = \"a\", env = \"A\" }]",
            "admin_auth.tokens[0].role",
            "needs a role",
        ),
        (
            "[admin_auth]\ntokens = [{ name = \"a\", role = \"read\" }]",
            "admin_auth.tokens[0].env",
            "named by env",
        ),
        (
            "[admin_auth]\ntokens = [{ name = \"a\", role = \"root\", env = \"A\" }]",
            "admin_auth.tokens[0].role",
            "\"operate\"",
        ),
        (
            "[admin_auth]\ntokens = [{ name = \"a\", role = \"read\", env = \"A\", file = \"f\" }]",
            "admin_auth.tokens[0].env",
            "not both",
        ),
    ]);
    let open = "admin = \"0.0.0.0:8081\"\n[admin_auth]\ntokens = [{ name = \"a\", role = \"read\", \
                env = \"A\" }]";
    assert!(load(open).is_ok());
}

#[test]
fn faulty_flags_are_named_as_flags() {
    let some = |text: &str| Some(text.to_owned());
    let missing = Config::load(None, Overrides::default()).unwrap_err().to_string();
    assert_eq!(
        missing,
        "error: upstream.url: no upstream: pass --upstream URL (ONCEWARD_UPSTREAM), or set url \
         under [upstream]\n\n1 fault"
    );
    let flags =
        Overrides { upstream: some("x"), listen: some("y"), admin: some("z"), store: some("w") };
    let faults = Config::load(Some(("f", "")), flags).unwrap_err();
    let keys: Vec<&str> =
        faults.0.iter().map(|fault| fault.key.split(' ').next().unwrap()).collect();
    assert_eq!(keys, ["--listen", "--admin", "--upstream", "--store"]);
    let admin = fault_of(Config::load(
        None,
        Overrides { upstream: some("http://a"), admin: some("0.0.0.0:1"), ..Overrides::default() },
    ));
    assert!(admin.starts_with("--admin (ONCEWARD_ADMIN): not a loopback address"), "{admin}");
}
