//! The page on the admin port, without a browser: which visitor sees what, and which forms are
//! refused.

use crate::admin::{TOKENS, lose};
use crate::harness::{Answer, Gateway, ROUTES, RedisServer, Request, Upstream, until};

const LOG: &str = "[log]\nenabled = true";

/// The HTTP side of a browser's form: its cookie and the values it was given.
pub struct Form {
    pub cookie: String,
    pub proof: String,
    pub version: String,
}

/// Requests a page as a browser does.
pub fn page(gateway: &Gateway, path: &str, cookie: Option<&str>) -> Answer {
    let request =
        Request::new("GET", path).host(&host(gateway)).field("Sec-Fetch-Site", "same-origin");
    cookie
        .into_iter()
        .fold(request, |request, cookie| request.field("Cookie", cookie))
        .send(gateway.admin)
}

fn host(gateway: &Gateway) -> String {
    format!("127.0.0.1:{}", gateway.admin)
}

/// The value of the first field of this name.
pub fn value(html: &str, name: &str) -> String {
    let field = html
        .split("<input")
        .find(|field| field.contains(&format!("name=\"{name}\"")))
        .unwrap_or_else(|| panic!("{html}"));
    field.split("value=\"").nth(1).unwrap().split('"').next().unwrap().to_owned()
}

/// Returns the cookie that an answer sets.
pub fn cookie(answer: &Answer) -> String {
    answer.get("set-cookie").unwrap().split(';').next().unwrap().to_owned()
}

impl Form {
    fn of(gateway: &Gateway, operation: &str) -> Form {
        let page = page(gateway, &format!("/operations/{operation}"), None);
        Form {
            cookie: cookie(&page),
            proof: value(&page.text(), "proof"),
            version: value(&page.text(), "version"),
        }
    }

    pub fn request(&self, gateway: &Gateway, path: &str, rest: &str) -> Request {
        Request::new("POST", path)
            .host(&host(gateway))
            .field("Origin", &format!("http://{}", host(gateway)))
            .field("Cookie", &self.cookie)
            .field("Content-Type", "application/x-www-form-urlencoded")
            .body(format!("proof={}&version={}&{rest}", self.proof, self.version))
    }
}

#[test]
fn a_form_of_the_page_settles_and_a_form_of_any_other_does_not() {
    let upstream = Upstream::start();
    let gateway = Gateway::start(upstream.port);
    let operation = lose(&gateway, "k");
    let form = Form::of(&gateway, &operation);
    let path = format!("/operations/{operation}/resolve");
    let rest = "status=201&media_type=application%2Fjson&body=%7B%7D&reason=ticket+4711";
    let state = || {
        gateway.ask("GET", &format!("/v1/operations/{operation}")).json()["state"]
            .as_str()
            .unwrap()
            .to_owned()
    };

    let sent = |request: Request| request.send(gateway.admin).status;
    let elsewhere = |origin: &str| {
        Request::new("POST", &path)
            .host(&host(&gateway))
            .field("Origin", origin)
            .field("Cookie", &form.cookie)
            .field("Content-Type", "application/x-www-form-urlencoded")
            .body(format!("proof={}&version={}&{rest}", form.proof, form.version))
    };
    for origin in ["https://evil.example", "null", "http://127.0.0.1:1", "http://localhost"] {
        assert_eq!(sent(elsewhere(origin)), 401, "{origin}");
    }
    assert_eq!(
        sent(form.request(&gateway, &path, rest).field("Sec-Fetch-Site", "cross-site")),
        401
    );
    assert_eq!(sent(form.request(&gateway, &path, rest).field("Sec-Fetch-Site", "same-site")), 401);
    let stranger =
        Form { cookie: cookie(&page(&gateway, "/", None)), ..Form::of(&gateway, &operation) };
    assert_eq!(sent(stranger.request(&gateway, &path, rest)), 403, "another browser's proof");
    let bare = Form { proof: String::new(), ..Form::of(&gateway, &operation) };
    assert_eq!(sent(bare.request(&gateway, &path, rest)), 403, "a cookie alone");
    assert_eq!(state(), "uncertain");

    let done = form.request(&gateway, &path, rest).send(gateway.admin);
    assert_eq!(
        (done.status, done.get("location")),
        (303, Some(format!("/operations/{operation}?done=resolve").as_str()))
    );
    assert_eq!(state(), "completed");
    let again = Request::pay("k", "{}").send(gateway.port);
    assert!(
        again.replayed()
            && again.text() == "{}"
            && again.get("content-type") == Some("application/json"),
        "{again:?}"
    );
    assert_eq!(upstream.executed(), 1);
}

#[test]
fn a_form_on_what_has_moved_changes_nothing_and_shows_what_it_is_now() {
    let upstream = Upstream::start();
    let gateway = Gateway::start(upstream.port);
    let operation = lose(&gateway, "k");
    let form = Form::of(&gateway, &operation);
    let path = format!("/operations/{operation}/resolve");
    assert_eq!(
        form.request(&gateway, &path, "status=201&reason=a").send(gateway.admin).status,
        303
    );
    let late =
        form.request(&gateway, &path, "status=500&reason=%22%3E%3Cimg%3E").send(gateway.admin);
    assert_eq!(late.status, 412);
    let text = late.text();
    assert!(text.contains("Nothing was changed") && text.contains("It is completed now"), "{text}");
    assert!(!text.contains("<img>"), "what was typed is text");
    assert_eq!(Request::pay("k", "{}").send(gateway.port).status, 201);
    for (rest, status) in
        [("reason=", 400), ("reason=r&status=many", 400), ("reason=r&status=99", 400)]
    {
        let other = lose(&gateway, rest);
        let form = Form::of(&gateway, &other);
        let answer = form
            .request(&gateway, &format!("/operations/{other}/resolve"), rest)
            .send(gateway.admin);
        assert_eq!(answer.status, status, "{rest}: {}", answer.text());
    }
    let early = form
        .request(&gateway, &format!("/operations/{operation}/release"), "reason=r")
        .send(gateway.admin);
    assert!(early.status == 412, "its version is an old one: {}", early.text());
}

#[test]
fn with_tokens_a_visitor_signs_in_once_and_the_browser_never_keeps_the_token() {
    let upstream = Upstream::start();
    let gateway = Gateway::with(upstream.port, TOKENS, ROUTES);
    let operation = lose(&gateway, "k");
    let path = format!("/operations/{operation}");
    let sent_away = page(&gateway, &path, None);
    assert_eq!(sent_away.status, 303);
    assert_eq!(
        sent_away.get("location"),
        Some(format!("/sign-in?next=%2Foperations%2F{}", operation.replace('_', "%5F")).as_str())
    );
    assert!(!sent_away.text().contains("payments"));

    let sign_in = |token: &str| {
        let asked = page(&gateway, "/sign-in", None);
        let form = Form {
            cookie: cookie(&asked),
            proof: value(&asked.text(), "proof"),
            version: String::new(),
        };
        form.request(&gateway, "/sign-in", &format!("token={token}&next={path}"))
            .send(gateway.admin)
    };
    assert_eq!(sign_in("wrong").status, 403);
    for (token, may_operate) in [("letmesee", false), ("letmein", true)] {
        let known = sign_in(token);
        assert_eq!((known.status, known.get("location")), (303, Some(path.as_str())));
        let kept = known.get("set-cookie").unwrap();
        assert!(kept.contains("HttpOnly; SameSite=Strict") && !kept.contains(token), "{kept}");
        let session = cookie(&known);
        let shown = page(&gateway, &path, Some(&session));
        assert_eq!(shown.status, 200);
        assert_eq!(shown.text().contains("name=\"version\""), may_operate, "{}", shown.text());
        let version = gateway_version(&gateway, &operation);
        let form = Form { cookie: session.clone(), proof: value(&shown.text(), "proof"), version };
        let settle = form
            .request(&gateway, &format!("{path}/resolve"), "status=201&reason=r")
            .send(gateway.admin);
        assert_eq!(
            settle.status,
            if may_operate { 303 } else { 403 },
            "{token}: {}",
            settle.text()
        );
        // The session is valid for the page only.
        let api = Request::new("GET", "/v1/operations")
            .host(&host(&gateway))
            .field("Cookie", &session)
            .send(gateway.admin);
        assert_eq!(api.status, 401);
        let ended = form.request(&gateway, "/sign-out", "").send(gateway.admin);
        assert_eq!((ended.status, ended.get("location")), (303, Some("/sign-in")));
        assert_eq!(page(&gateway, "/", Some(&session)).status, 303, "the session is over");
    }
    gateway.logged("on-call");
    assert!(!gateway.logs().contains("letme"), "a token is not");
}

fn gateway_version(gateway: &Gateway, operation: &str) -> String {
    let path = format!("/v1/operations/{operation}");
    let seen = Request::new("GET", &path)
        .host("127.0.0.1")
        .field("Authorization", "Bearer letmein")
        .send(gateway.admin);
    seen.json()["version"].as_str().unwrap().to_owned()
}

#[test]
fn pages_fit_no_frame_load_nothing_from_elsewhere_and_are_not_kept() {
    let upstream = Upstream::start();
    let gateway = Gateway::start(upstream.port);
    for path in ["/", "/operations", "/uncertain", "/delivery", "/operations/op_1"] {
        let answer = page(&gateway, path, None);
        assert_eq!(
            (answer.get("cache-control"), answer.get("x-content-type-options")),
            (Some("no-store"), Some("nosniff")),
            "{path}"
        );
        let policy = answer.get("content-security-policy").unwrap();
        for rule in [
            "default-src 'none'",
            "script-src 'self'",
            "frame-ancestors 'none'",
            "base-uri 'none'",
            "form-action 'self'",
        ] {
            assert!(policy.contains(rule), "{path}: {policy}");
        }
        assert!(!policy.contains("unsafe"), "{policy}");
        let text = answer.text();
        assert!(
            !text.contains("<script>") && !text.contains(" style=") && !text.contains(" onclick"),
            "{path}: {text}"
        );
    }
    let text = page(&gateway, "/", None).text();
    let assets: Vec<&str> = text.split('"').filter(|piece| piece.starts_with("/assets/")).collect();
    assert_eq!(assets.len(), 4, "{text}");
    for asset in assets {
        let file = page(&gateway, asset, None);
        assert_eq!(
            (file.status, file.get("cache-control")),
            (200, Some("public, max-age=31536000, immutable")),
            "{asset}"
        );
    }
    assert_eq!(page(&gateway, "/assets/htmx.js", None).status, 404);
    assert_eq!(page(&gateway, "/operations/op_1", None).status, 404);
    let unknown = page(&gateway, "/operations/op_0000000000000000000000000000000000000000", None);
    assert!(unknown.get("content-type").unwrap().starts_with("text/html"));
    assert!(
        unknown.status == 404 && unknown.text().contains("href=\"/uncertain\""),
        "it has the menu: {}",
        unknown.text()
    );
}

/// Requests an operation's page, once the read model contains the operation.
fn shown(gateway: &Gateway, operation: &str) -> Answer {
    let path = format!("/operations/{operation}");
    until("the timeline", || page(gateway, &path, None).text().contains("An attempt began"));
    page(gateway, &path, None)
}

#[test]
fn an_operation_that_the_store_cannot_read_is_not_called_gone() {
    let (upstream, redis) = (Upstream::start(), RedisServer::start());
    let gateway = Gateway::on(upstream.port, &redis.url(), LOG, ROUTES);
    let operation = lose(&gateway, "k");
    assert_eq!(shown(&gateway, &operation).status, 200);
    redis.signal("STOP");
    let unknown = page(&gateway, &format!("/operations/{operation}"), None);
    let overview = page(&gateway, "/", None);
    redis.signal("CONT");
    assert_eq!(unknown.status, 503, "{}", unknown.text());
    for text in [unknown.text(), overview.text()] {
        assert!(
            !text.contains("the key is free") && !text.contains("the write may have happened"),
            "{text}"
        );
        assert!(text.contains("the store does not answer"), "{text}");
    }
}

#[test]
fn a_key_that_a_tombstone_bars_is_not_called_new() {
    let upstream = Upstream::start();
    let routes = format!("{ROUTES}retention = \"1s\"\ntombstone = \"1h\"\n");
    let gateway = Gateway::with(upstream.port, LOG, &routes);
    assert_eq!(Request::pay("k", "{}").send(gateway.port).status, 201);
    let listed = gateway.ask("GET", "/v1/operations").json();
    let operation = listed["operations"][0]["operation"].as_str().unwrap().to_owned();
    shown(&gateway, &operation);
    until("the result to be gone", || Request::pay("k", "{}").send(gateway.port).status == 409);
    let text = shown(&gateway, &operation).text();
    assert!(
        text.contains("A tombstone blocks the key") && !text.contains("the key is free"),
        "{text}"
    );
}

#[test]
fn what_was_uncertain_before_the_log_was_on_waits_on_the_overview_too() {
    let (upstream, redis) = (Upstream::start(), RedisServer::start());
    lose(&Gateway::on(upstream.port, &redis.url(), "", ROUTES), "k");
    let gateway = Gateway::on(upstream.port, &redis.url(), LOG, ROUTES);
    let text = page(&gateway, "/", None).text();
    assert!(
        text.contains("waiting for a decision") && !text.contains("nothing to decide"),
        "{text}"
    );
}

#[test]
fn what_can_not_be_searched_for_is_refused_and_not_left_out() {
    let upstream = Upstream::start();
    let gateway = Gateway::start(upstream.port);
    let operation = lose(&gateway, "k");
    for query in ["text=A-17", "status=201", "route=payments", "from=2026-11-25T03:00"] {
        let answer = page(&gateway, &format!("/operations?{query}"), None);
        assert!(
            answer.status == 501 && answer.text().contains("this needs the read model"),
            "{query}: {}",
            answer.text()
        );
        assert!(!answer.text().contains(&operation), "{query}");
    }
    assert!(
        !page(&gateway, "/operations", None).text().contains("value=\"gone\""),
        "the store has nothing that is gone"
    );
    assert!(page(&gateway, "/operations?state=uncertain", None).text().contains(&operation));
}

#[test]
fn a_tenants_operations_are_found_by_its_name_which_is_in_no_address() {
    let upstream = Upstream::start();
    let gateway = Gateway::with(
        upstream.port,
        LOG,
        &format!("{ROUTES}scope = {{ header = \"X-Tenant\" }}\n"),
    );
    for tenant in ["canary tenant", "another"] {
        assert_eq!(
            Request::pay("k", "{}").field("X-Tenant", tenant).send(gateway.port).status,
            201
        );
    }
    let listed = || {
        gateway.ask("GET", "/v1/operations?route=payments").json()["operations"]
            .as_array()
            .unwrap()
            .clone()
    };
    until("both to be listed", || listed().len() == 2);
    let references = listed()
        .iter()
        .map(|one| one["operation"].as_str().unwrap().to_owned())
        .collect::<Vec<_>>();
    let shown = page(&gateway, "/operations", None);
    let form = Form {
        cookie: cookie(&shown),
        proof: value(&shown.text(), "proof"),
        version: String::new(),
    };
    let find = |rest: &str| form.request(&gateway, "/operations/scope", rest).send(gateway.admin);
    let found = find("route=payments&scope.x-tenant=canary+tenant");
    let path = found.get("location").unwrap_or_else(|| panic!("{}", found.text())).to_owned();
    assert!(
        found.status == 303 && path.starts_with("/operations?scope=") && !path.contains("canary"),
        "{path}"
    );
    let text = page(&gateway, &path, Some(&form.cookie)).text();
    assert!(text.contains(&references[1]) && !text.contains(&references[0]), "{text}");
    let missing = find("route=payments&scope.x-tenant=");
    assert!(
        missing.status == 400 && missing.text().contains("needs x-tenant"),
        "{}",
        missing.text()
    );
    let forged = Form { proof: "0".to_owned(), ..form };
    assert_eq!(
        forged
            .request(&gateway, "/operations/scope", "route=payments&scope.x-tenant=x")
            .send(gateway.admin)
            .status,
        403
    );
    assert!(!gateway.logs().contains("canary"));
}

#[test]
fn what_was_let_run_is_not_shown_as_if_nobody_had_decided() {
    let upstream = Upstream::start();
    let gateway = Gateway::with(
        upstream.port,
        "",
        "[[routes]]\nname = \"payments\"\npath = \"/v1/payments\"\nuncertain_after = \"0s\"\n",
    );
    let operation = lose(&gateway, "k");
    let shown = |path: &str| page(&gateway, path, None).text();
    let path = format!("/operations/{operation}");
    assert!(
        shown("/uncertain").contains("resolve, retry, release")
            && shown(&path).contains("nothing runs")
    );
    let form = Form::of(&gateway, &operation);
    assert_eq!(
        form.request(&gateway, &format!("{path}/retry"), "reason=r").send(gateway.admin).status,
        303
    );
    let queue = shown("/uncertain");
    assert!(
        queue.contains("decided: the next duplicate runs; until then resolve, release"),
        "{queue}"
    );
    let own = shown(&path);
    assert!(own.contains("An operator has decided that the next duplicate runs"), "{own}");
    assert!(
        !own.contains("nothing runs while it is held") && !own.contains(&format!("{path}/retry")),
        "{own}"
    );
}
