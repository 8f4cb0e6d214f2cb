//! The admin page in a real Chromium, with and without scripts, and with a keyboard alone.

use std::time::{Duration, SystemTime};

use crate::admin::lose;
use crate::harness::browser::{ENTER, View};
use crate::harness::{Browser, Gateway, ROUTES, RedisServer, Request, Upstream, until};

/// A route that treats a lost request as finished immediately.
const SETTLED_AT_ONCE: &str = r#"
[[routes]]
name = "payments"
path = "/v1/payments"
scope = { header = "X-Shop" }
lease = "2s"
uncertain_after = "0s"
"#;

fn pay(key: &str) -> Request {
    Request::pay(key, r#"{"amount":4200}"#).field("X-Shop", "shop-7")
}

fn now() -> SystemTime {
    #[allow(clippy::disallowed_methods)]
    SystemTime::now()
}

/// Asserts that the browser's console has no messages.
#[track_caller]
fn nothing_is_wrong(browser: &Browser) {
    let complaints = browser.complaints();
    assert!(complaints.is_empty(), "{complaints:?}");
}

#[test]
fn every_page_is_shown_without_a_complaint_and_one_that_broke_the_policy_would_be_seen() {
    let upstream = Upstream::start();
    let gateway = Gateway::start(upstream.port);
    let operation = lose(&gateway, "k");
    let browser = Browser::start(gateway.admin);
    for (path, title) in [
        ("/", "Overview"),
        ("/operations", "Operations"),
        ("/uncertain", "Uncertain outcomes"),
        ("/sagas", "Sagas"),
        ("/delivery", "Delivery"),
    ] {
        browser.open(path);
        browser.shows("h1", title);
        assert_eq!(browser.attribute("nav a[aria-current=page]", "href").as_deref(), Some(path));
    }
    browser.open(&format!("/operations/{operation}"));
    browser.shows("h1", "uncertain");
    nothing_is_wrong(&browser);
    browser
        .script("const script = document.createElement('script'); script.text = 'window.ran = 1'; document.body.append(script)");
    assert!(browser.script("return window.ran || null").is_null(), "no inline script runs");
    until("the browser to complain", || {
        browser.complaints().iter().any(|text| text.contains("Content Security Policy"))
    });
}

#[test]
fn traffic_is_on_the_overview_and_an_operation_is_found_by_what_is_known_of_it() {
    let upstream = Upstream::start();
    let routes = format!("{ROUTES}\n[[routes]]\nname = \"refunds\"\npath = \"/v1/refunds\"\n");
    let gateway = Gateway::with(upstream.port, "[log]\nenabled = true", &routes);
    let refund = Request::new("POST", "/v1/refunds").field("Idempotency-Key", "r").json("{}");
    for key in ["a", "b", "c"] {
        assert_eq!(Request::pay(key, "{}").send(gateway.port).status, 201);
    }
    assert_eq!(refund.send(gateway.port).status, 201);
    let lost = lose(&gateway, "k");
    let browser = Browser::start(gateway.admin);
    browser.open("/");
    browser.shows(".figures div:nth-child(1)", "5");
    browser.shows(".legend", "executed 4");
    browser.shows("#live table.cards", &lost);
    browser.open("/operations");
    browser.shows("#live", &lost);
    browser.script("document.querySelector('#route').value = 'refunds'");
    browser.click("[role=search] button");
    browser.shows("#live caption", "newest first");
    assert!(browser.path().contains("route=refunds"), "a search has an address");
    let found = browser.text("#live table.cards");
    assert!(found.contains("refunds") && !found.contains("payments"), "{found}");
    browser.open("/operations?state=uncertain");
    browser.shows("#live", &lost);
    browser.click(&format!("#{lost}"));
    browser.shows(".timeline", "An attempt began");
    browser.shows(".timeline", "The outcome became uncertain");
    browser.click("details.action summary");
    browser.fill("#resolve-status", "201");
    browser.fill("#resolve-reason", "ticket 4711");
    browser.click("details.action button");
    until("the decision to be shown", || {
        browser.open(&format!("/operations/{lost}"));
        browser.text(".timeline").contains("ticket 4711")
    });
    assert!(browser.text(".timeline").contains("Resolved by loopback"));
    nothing_is_wrong(&browser);
}

#[test]
fn an_uncertain_outcome_is_resolved_with_nothing_but_a_keyboard() {
    let upstream = Upstream::start();
    let gateway = Gateway::start(upstream.port);
    let operation = lose(&gateway, "k");
    let browser = Browser::start(gateway.admin);
    browser.open("/");
    browser.tab_to(".skip");
    browser.tab_to("nav a[href='/uncertain']");
    browser.press(&[ENTER]);
    browser.shows("h1", "Uncertain outcomes");
    browser.tab_to(&format!("#{operation}"));
    browser.press(&[ENTER]);
    browser.shows(".named", &operation);
    browser.tab_to("details.action summary");
    browser.press(&[ENTER]);
    browser.tab_to("#resolve-status");
    browser.write("201");
    browser.tab_to("#resolve-body");
    browser.write(r#"{"payment":"settled"}"#);
    browser.tab_to("#resolve-reason");
    browser.write("found in the ledger");
    browser.press(&[ENTER]);
    browser.shows(".notice.good", "Resolved");
    browser.shows("h1", "completed");
    let again = Request::pay("k", "{}").send(gateway.port);
    assert_eq!(
        (again.status, again.replayed(), again.text().as_str()),
        (201, true, r#"{"payment":"settled"}"#)
    );
    gateway.logged("found in the ledger");
    nothing_is_wrong(&browser);
    assert_eq!(upstream.executed(), 1);
}

#[test]
fn without_scripts_an_operation_is_found_by_its_key_and_released() {
    let upstream = Upstream::start();
    let gateway = Gateway::with(upstream.port, "", SETTLED_AT_ONCE);
    let lost = pay("canary-key").act("drop").send(gateway.port);
    let operation = lost.json()["operation"].as_str().unwrap().to_owned();
    let browser = Browser::with(gateway.admin, View { scripts: false, ..View::default() });
    browser.open("/operations");
    browser.click("#by-key summary");
    browser.fill("#key", "canary-key");
    browser.fill("[id='scope-x-shop']", "shop-8");
    browser.click("#by-key button");
    browser.shows(".notice.bad", "no operation is stored under this key");
    assert_eq!(browser.path(), "/operations/lookup", "no key in the address");
    browser.click("#by-key summary");
    browser.fill("#key", "canary-key");
    browser.fill("[id='scope-x-shop']", "shop-7");
    browser.click("#by-key button");
    browser.shows(".named", &operation);
    browser.click(".action:nth-of-type(3) summary");
    browser.shows(".action:nth-of-type(3)", "Release the key");
    browser.fill("#release-reason", "not in the ledger");
    browser.click(".action:nth-of-type(3) button");
    browser.shows("h1", "released");
    assert_eq!(pay("canary-key").send(gateway.port).status, 201);
    assert_eq!(upstream.executed(), 2, "the key was free");
    assert!(!gateway.logs().contains("canary-key"));
}

#[test]
fn the_page_follows_events_and_shows_when_it_can_not() {
    let upstream = Upstream::start();
    let mut gateway = Gateway::start(upstream.port);
    let browser = Browser::start(gateway.admin);
    browser.open("/uncertain");
    browser.shows("#live", "None.");
    let operation = lose(&gateway, "k");
    browser.shows("#live", &operation);
    browser.shows("#announcement", "1 uncertain outcome");
    nothing_is_wrong(&browser);
    gateway.kill();
    browser.shows("#stale", "no longer updated");
    browser.shows("#live", &operation);
}

#[test]
fn a_charge_that_a_crash_left_uncertain_is_on_the_page_and_settled_there() {
    let (upstream, redis) = (Upstream::start(), RedisServer::start());
    let start = || Gateway::on(upstream.port, &redis.url(), "", SETTLED_AT_ONCE);
    let (mut crashing, other) = (start(), start());
    let mut client = crate::harness::Connection::open(crashing.port);
    client.write(&pay("k").act("hold").bytes());
    upstream.reached(1);
    let browser = Browser::start(other.admin);
    browser.open("/uncertain");
    browser.shows("#live", "None.");
    crashing.kill();
    let view = other.ask("GET", "/v1/operations?state=in_flight").json()["operations"][0].clone();
    let (operation, lease_ends) =
        (view["operation"].as_str().unwrap(), view["lease_ends_at"].as_str().unwrap());
    let lease_ends: SystemTime = humantime::parse_rfc3339(lease_ends).unwrap();
    browser.shows("#live", operation);
    // An expired lease ends by the server's clock, which is this machine's.
    let shown_after = now().duration_since(lease_ends).unwrap_or_default();
    assert!(shown_after < Duration::from_secs(2), "{shown_after:?} after its lease's end");
    browser.click(&format!("#{operation}"));
    browser.click("details.action summary");
    browser.fill("#resolve-status", "201");
    browser.fill("#resolve-body", r#"{"payment":"in the ledger"}"#);
    browser.fill("#resolve-reason", "ticket 4711");
    browser.click("details.action button");
    browser.shows("h1", "completed");
    let again = pay("k").send(other.port);
    assert!(again.status == 201 && again.replayed(), "{again:?}");
    assert_eq!(
        (again.text().as_str(), again.get("content-type")),
        (r#"{"payment":"in the ledger"}"#, Some("application/json"))
    );
    assert_eq!(upstream.executed(), 1);
    nothing_is_wrong(&browser);
}

#[test]
fn whoever_uses_a_keyboard_stays_where_they_are_while_the_page_follows() {
    let upstream = Upstream::start();
    let gateway = Gateway::with(upstream.port, "[log]\nenabled = true", ROUTES);
    for n in 0..51 {
        assert_eq!(Request::pay(&format!("k{n}"), "{}").send(gateway.port).status, 201);
    }
    lose(&gateway, "lost");
    let browser = Browser::start(gateway.admin);
    let focused =
        || browser.script("return document.activeElement.textContent").as_str().unwrap().to_owned();
    for (path, words) in [
        (
            "/",
            ["waiting for a decision", "Show as a table", "All operations, and search"].as_slice(),
        ),
        ("/operations", &["Next page"]),
    ] {
        browser.open(path);
        browser.shows("#live table.cards", "op_");
        for word in words {
            browser.shows("#live", word);
            browser.script(&format!(
                "document.querySelector('#live').dataset.old = '1';
                 [...document.querySelectorAll('#live a, #live summary')].find((one) => one.textContent === '{word}').focus()"
            ));
            assert_eq!(focused(), *word);
            until("the page to have followed", || {
                browser
                    .script("return document.querySelector('#live').dataset.old || null")
                    .is_null()
            });
            assert_eq!(focused(), *word, "on {path}");
        }
    }
}
