//! Sagas on the page: the list, the graph of one saga, its timeline, and the decisions about it.

use serde_json::{Value, json};

use crate::admin::TOKENS;
use crate::harness::browser::{ENTER, View};
use crate::harness::{Answer, Browser, Gateway, RedisServer, Request, Upstream, until};
use crate::page::{Form, cookie, page, value};

const SETTINGS: &str = r#"
[store]
format = 3
[log]
enabled = true
[encryption]
keys = [{ id = "a", env = "SAGA_KEY" }]
"#;

/// An order with two steps side by side. Its body has the upstream's scripts for two of the steps.
const ORDERS: &str = r#"
[[sagas]]
name = "order"
path = "/v1/orders"
fields = { order = "request:/order" }
[[sagas.steps]]
name = "reserve"
request = { path = "/v1/reservations", headers = { Authorization = { env = "SAGA_KEY" } } }
compensate = { method = "DELETE", path = "/v1/reservations/7" }
[[sagas.steps]]
name = "pack"
after = ["reserve"]
request = { path = "/v1/packs", headers = { X-Act = "{{ request.body.pack }}" } }
compensate = { path = "/v1/packs/undo", headers = { X-Act = "status 201" } }
[[sagas.steps]]
name = "gift"
after = ["reserve"]
when = "request.body.gift"
request = { path = "/v1/gifts" }
compensate = { path = "/v1/gifts/undo" }
[[sagas.steps]]
name = "ship"
after = ["pack", "gift"]
timeout = "60s"
request = { path = "/v1/shipments", headers = { X-Act = "{{ request.body.ship }}" } }
compensate = "none"
"#;

/// A gateway with sagas, and its upstream.
struct Scene {
    gateway: Gateway,
    upstream: Upstream,
}

impl Scene {
    fn new(settings: &str) -> Scene {
        let upstream = Upstream::start();
        let gateway = launch(&upstream, "memory:", &format!("{SETTINGS}{ORDERS}{settings}"));
        Scene { gateway, upstream }
    }

    /// Starts a saga that can't be undone, because the upstream refuses it. Returns its id.
    fn stuck(settings: &str) -> (Scene, String) {
        let scene = Scene::new(settings);
        let id = scene.refused_and_not_undone();
        (scene, id)
    }

    fn refused_and_not_undone(&self) -> String {
        self.upstream.answer_line("DELETE /v1/reservations/7", "status 409");
        assert_eq!(self.order("k", "status 422").problem(), "saga-stuck");
        self.only_saga()
    }

    /// Sends an order. `ship` is the script of its last step.
    fn order(&self, key: &str, ship: &str) -> Answer {
        order(key, ship).send(self.gateway.port)
    }

    fn api(&self, target: &str) -> Value {
        let request = Request::new("GET", target).host("127.0.0.1");
        let request = request.field("Authorization", "Bearer letmein");
        request.send(self.gateway.admin).json()
    }

    fn only_saga(&self) -> String {
        let list = self.api("/v1/sagas");
        assert_eq!(list["sagas"].as_array().unwrap().len(), 1, "{list}");
        list["sagas"][0]["id"].as_str().unwrap().to_owned()
    }

    fn status(&self, id: &str) -> String {
        self.api(&format!("/v1/sagas/{id}"))["status"].as_str().unwrap().to_owned()
    }

    /// Opens a page as a client without a browser. Returns the values of its forms, and its text.
    fn open(&self, path: &str, session: Option<&str>) -> (Form, String) {
        let answer = page(&self.gateway, path, session);
        assert_eq!(answer.status, 200, "{path}: {}", answer.text());
        let text = answer.text();
        let cookie = session.map_or_else(|| cookie(&answer), str::to_owned);
        let given = |name: &str| {
            let is_given = text.contains(&format!("name=\"{name}\""));
            if is_given { value(&text, name) } else { String::new() }
        };
        (Form { cookie, proof: given("proof"), version: given("version") }, text)
    }

    fn send(&self, form: &Form, path: &str, rest: &str) -> Answer {
        form.request(&self.gateway, path, rest).send(self.gateway.admin)
    }

    /// Signs in, and returns the cookie of the session.
    fn sign_in(&self, token: &str) -> String {
        let (form, _) = self.open("/sign-in", None);
        let known = self.send(&form, "/sign-in", &format!("token={token}&next=/sagas"));
        assert_eq!(known.status, 303, "{}", known.text());
        cookie(&known)
    }

    fn undone(&self) -> usize {
        let seen = self.upstream.seen().into_iter();
        seen.filter(|seen| seen.line.starts_with("DELETE ")).count()
    }
}

fn launch(upstream: &Upstream, store: &str, settings: &str) -> Gateway {
    let url = format!("http://127.0.0.1:{}", upstream.port);
    let gateway = Gateway::launch(&url, store, settings, "", |command| {
        command.env("SAGA_KEY", "AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQE=");
    });
    until("the gateway to be ready", || gateway.is_ready());
    gateway
}

fn order(key: &str, ship: &str) -> Request {
    let body = json!({
        "order": format!("<b>{key}</b>"), "gift": false, "pack": "status 201", "ship": ship,
        "card": "4711-canary",
    });
    Request::new("POST", "/v1/orders").field("Idempotency-Key", key).json(&body.to_string())
}

#[track_caller]
fn nothing_is_wrong(browser: &Browser) {
    let complaints = browser.complaints();
    assert!(complaints.is_empty(), "{complaints:?}");
}

#[test]
fn a_stuck_saga_is_found_understood_and_retried_with_nothing_but_a_keyboard() {
    let (scene, id) = Scene::stuck("");
    let browser = Browser::start(scene.gateway.admin);
    browser.open("/");
    browser.shows(".figures", "Stuck sagas");
    browser.tab_to("nav a[href='/uncertain']");
    browser.press(&[ENTER]);
    browser.shows("#live", "1 stuck saga");
    browser.shows("#live", "reserve, compensation – refused with the status 409");
    browser.tab_to(&format!("#{id}"));
    browser.press(&[ENTER]);
    browser.shows("h1", "Saga order stuck");

    browser.tab_to("#why-0");
    browser.press(&[ENTER]);
    browser.tab_to("#graph-0");
    assert_eq!(browser.path(), format!("/sagas/{id}#graph-0"), "the reason leads to the step");

    // A step is a link to its operation, and the operation is linked to the saga.
    browser.tab_to("#graph-undo-0");
    let label = browser.attribute("#graph-undo-0", "aria-label");
    assert_eq!(label.as_deref(), Some("compensation of reserve, undo refused, stuck, 1 attempt"));
    let outline = browser.script(
        "return getComputedStyle(document.querySelector('#graph-undo-0 .face')).strokeWidth",
    );
    assert_eq!(outline, "4px", "the focus is visible");
    browser.press(&[ENTER]);
    browser.shows("h1", "Operation completed");
    browser.tab_to("#saga");
    browser.press(&[ENTER]);
    browser.shows("h1", "Saga order stuck");

    scene.upstream.answer_line("DELETE /v1/reservations/7", "status 204");
    browser.tab_to("#retry-0");
    browser.press(&[ENTER]);
    browser.tab_to("#retry-0-reason");
    browser.write("stock is back");
    browser.press(&[ENTER]);
    browser.shows(".notice.good", "Decided: the step is tried again");
    browser.shows("h1", "Saga order failed");
    browser.shows(".steps-summary", "reserve undone");
    browser.shows(".timeline", "clients get the status 409");
    assert_eq!((scene.status(&id).as_str(), scene.undone()), ("ended", 2));
    nothing_is_wrong(&browser);
}

#[test]
fn the_graph_and_the_timeline_show_what_happened_and_why() {
    let (scene, id) = Scene::stuck("");
    let browser = Browser::start(scene.gateway.admin);
    browser.open(&format!("/sagas/{id}"));
    let labels = browser.script(
        "return [...document.querySelectorAll('svg.steps [aria-label]')]
            .map((one) => one.getAttribute('aria-label'))",
    );
    let expected = json!([
        "reserve, done, 1 attempt, begins at once",
        "compensation of reserve, undo refused, stuck, 1 attempt",
        "pack, done, 1 attempt, after reserve",
        "compensation of pack, undone, 1 attempt",
        "gift, skipped, after reserve",
        "compensation of gift, nothing to undo",
        "ship, failed, 1 attempt, after pack and gift",
    ]);
    assert_eq!(labels, expected, "from top to bottom, and from left to right");
    let tops = browser.script(
        "return [0, 1, 2, 3].map((at) => document.querySelector(`#graph-${at} .face`).y.baseVal.value)",
    );
    let tops: Vec<f64> = serde_json::from_value(tops).unwrap();
    assert!(tops[0] < tops[1] && tops[1] == tops[2] && tops[2] < tops[3], "a diamond: {tops:?}");
    for text in [
        "The saga began",
        "gift was skipped: its condition was false",
        "ship failed",
        "refused with the status 422",
        "The saga goes back: ship failed",
        "pack is undone",
        "The compensation of reserve was refused",
        "The saga is stuck",
    ] {
        browser.shows(".timeline", text);
    }
    nothing_is_wrong(&browser);
}

#[test]
fn a_graph_that_is_wider_than_the_screen_scrolls_in_its_own_box() {
    let wide = ORDERS.replace("after = [\"reserve\"]", "after = []");
    let upstream = Upstream::start();
    let gateway = launch(&upstream, "memory:", &format!("{SETTINGS}{wide}"));
    let scene = Scene { gateway, upstream };
    let id = scene.refused_and_not_undone();
    let view = View { width: 500, dark: true, ..View::default() };
    let browser = Browser::with(scene.gateway.admin, view);
    for path in [format!("/sagas/{id}"), "/sagas".to_owned(), "/uncertain".to_owned()] {
        browser.open(&path);
        browser.shows("#live", "order");
        let overflow = browser.script("return document.documentElement.scrollWidth - innerWidth");
        assert!(overflow.as_i64().unwrap() <= 0, "{path}: {overflow} px");
    }
    browser.open(&format!("/sagas/{id}"));
    // As wide as on a phone: a browser's window is wider.
    let scrolls = browser.script(
        "const box = document.querySelector('svg.steps').parentElement;
         box.style.width = '300px';
         document.querySelector('#graph-2').focus();
         return [box.scrollWidth > box.clientWidth, box.scrollLeft > 0]",
    );
    assert_eq!(scrolls, json!([true, true]), "a step that has the focus is in sight");
}

#[test]
fn a_held_step_is_linked_to_its_saga_and_settling_it_lets_the_saga_go_on() {
    let scene = Scene::new("");
    assert_eq!(scene.order("k", "status 500").problem(), "saga-stuck");
    let id = scene.only_saga();
    let operation = scene.api(&format!("/v1/sagas/{id}"))["stuck"][0]["operation"].clone();
    let operation = operation.as_str().unwrap();
    let browser = Browser::with(scene.gateway.admin, View { scripts: false, ..View::default() });
    browser.open("/uncertain");
    browser.click(&format!("#saga-of-{operation}"));
    browser.shows("h1", "Saga order stuck");
    let (_, text) = scene.open(&format!("/sagas/{id}"), None);
    assert!(!text.contains("/retry\"") && text.contains("/cancel\""), "held: {text}");
    browser.click("#held-0");
    browser.shows("h1", "Operation uncertain");
    browser.shows("#saga", "a saga order");
    browser.shows("main", "the saga sends it again under the same key");
    browser.click("details.action summary");
    browser.fill("#resolve-status", "201");
    browser.fill("#resolve-reason", "the carrier has it");
    browser.click("details.action button");
    browser.shows("h1", "Operation completed");
    until("the saga to end", || scene.status(&id) == "ended");
    browser.open(&format!("/sagas/{id}"));
    browser.shows("h1", "Saga order completed");
    browser.shows(".steps-summary", "ship done");
    browser.click("#record");
    browser.shows("h1", "Operation completed");
    browser.shows("#saga", "The steps of this saga");
}

#[test]
fn without_scripts_a_step_is_skipped_and_a_running_saga_cancelled() {
    let (scene, id) = Scene::stuck("");
    let browser = Browser::with(scene.gateway.admin, View { scripts: false, ..View::default() });
    browser.open(&format!("/sagas/{id}"));
    browser.click("#skip-0");
    browser.fill("#skip-0-reason", "undone by phone");
    browser.click("form[action$=skip] button");
    browser.shows(".notice.good", "counts as done by hand");
    until("the end of the saga", || scene.status(&id) == "ended");
    assert_eq!(scene.undone(), 1, "it is never sent again");

    let client = order("other", "hold").send_aside(scene.gateway.port);
    until("the shipment to begin", || {
        scene.upstream.seen().iter().filter(|seen| seen.line.contains("/v1/shipments")).count() == 2
    });
    let id = scene.only_saga();
    browser.open(&format!("/sagas/{id}"));
    browser.shows("#cancel", "These steps are undone: pack, reserve.");
    browser.click("#cancel");
    browser.fill("#cancel-reason", "the customer called");
    browser.click("form[action$=cancel] button");
    browser.shows(".timeline", "loopback cancelled the saga");
    browser.shows(".timeline", "“the customer called”");
    browser.shows("h1", "compensating");
    scene.upstream.answer_line("DELETE /v1/reservations/7", "status 204");
    scene.upstream.release();
    assert_eq!(client.join().unwrap().problem(), "saga-failed");
}

#[test]
fn a_reader_sees_no_form_and_a_decision_needs_the_page_a_reason_and_the_version() {
    let (scene, id) = Scene::stuck(TOKENS);
    let path = format!("/sagas/{id}");
    let reader = scene.sign_in("letmesee");
    let (form, text) = scene.open(&path, Some(&reader));
    assert!(!text.contains("/retry\"") && text.contains("Your token may read"), "{text}");
    let refused = scene.send(&form, &format!("{path}/retry"), "step=reserve&reason=r");
    assert_eq!(refused.status, 403, "{}", refused.text());

    let operator = scene.sign_in("letmein");
    let (form, text) = scene.open(&path, Some(&operator));
    for secret in ["4711-canary", "AQEBAQEB", "<b>k</b>"] {
        assert!(!text.contains(secret), "{secret} is on the page");
    }
    let retry = |form: &Form, rest: &str| scene.send(form, &format!("{path}/retry"), rest);
    let bare =
        Form { proof: String::new(), cookie: form.cookie.clone(), version: form.version.clone() };
    assert_eq!(retry(&bare, "step=reserve&reason=r").status, 403, "a cookie alone");
    let unreasoned = retry(&form, "step=reserve&reason=+");
    assert!(unreasoned.status == 400 && unreasoned.text().contains("Nothing was changed"));
    let old = Form { version: "7".to_owned(), proof: form.proof.clone(), cookie: operator };
    let moved = retry(&old, "step=reserve&reason=%3Ci%3Eticket");
    assert_eq!(moved.status, 412);
    let text = moved.text();
    assert!(text.contains("value=\"&lt;i&gt;ticket\"") && text.contains("is stuck now"), "{text}");
    let elsewhere = retry(&form, "step=ship&reason=r");
    assert_eq!(elsewhere.status, 409, "the step does not wait for a decision");
    assert_eq!(scene.undone(), 1, "nothing was sent");

    let done = retry(&form, "step=reserve&reason=%3Cb%3Estock");
    assert_eq!((done.status, done.get("location")), (303, Some(&*format!("{path}?done=retry"))));
    until("the retry", || scene.undone() == 2);
    let (_, text) = scene.open(&path, Some(&form.cookie));
    assert!(text.contains("on-call retried reserve") && text.contains("&lt;b&gt;stock"), "{text}");
    assert_eq!(page(&scene.gateway, "/sagas/op_1", Some(&form.cookie)).status, 404);
}

#[test]
fn a_decision_is_made_on_the_state_that_the_page_showed() {
    let scene = Scene::new("");
    assert_eq!(scene.order("k", "status 500").problem(), "saga-stuck");
    let id = scene.only_saga();
    let path = format!("/sagas/{id}");
    let (form, _) = scene.open(&path, None);
    let record = || scene.api(&format!("/v1/sagas/{id}"));
    let cancelled = scene.send(&form, &format!("{path}/cancel"), "reason=the+customer+called");
    assert_eq!(cancelled.status, 303, "{}", cancelled.text());
    assert_eq!(record()["back"], "cancel");
    let again = scene.send(&form, &format!("{path}/cancel"), "reason=again");
    assert_eq!(again.status, 412, "the saga goes back now");
    assert_eq!(record()["decisions"].as_array().unwrap().len(), 1);
}

#[test]
fn running_sagas_are_listed_newest_first_filtered_and_paged() {
    const SAGAS: usize = 52;
    let scene = Scene::new("");
    for n in 0..SAGAS {
        let order = order(&format!("k{n}"), "hold").field("Prefer", "respond-async");
        assert_eq!(order.send(scene.gateway.port).status, 202);
    }
    until("all shipments to begin", || {
        let seen = scene.upstream.seen();
        seen.iter().filter(|seen| seen.line.contains("/v1/shipments")).count() == SAGAS
    });
    let (_, first) = scene.open("/sagas?status=running&name=order", None);
    let next = first.split("id=\"further\" href=\"").nth(1).unwrap().split('"').next().unwrap();
    let next = next.replace("&amp;", "&");
    let (_, second) = scene.open(&next, None);
    let rows = |text: &str| text.matches("data-label=\"Status\"").count();
    assert_eq!((rows(&first), rows(&second)), (50, 2), "{next}");
    assert!(first.contains("52 sagas, newest first") && first.contains("ship: running"));
    let times = |text: &str| {
        let times = text.split("<time datetime=\"").skip(1);
        times.map(|time| time.split('"').next().unwrap().to_owned()).collect::<Vec<_>>()
    };
    let shown = [times(&first), times(&second)].concat();
    let mut sorted = shown.clone();
    sorted.sort_by(|one, other| other.cmp(one));
    assert_eq!(shown, sorted);
    until("the chosen fields", || {
        scene.open("/sagas", None).1.contains("<dd>&lt;b&gt;k51&lt;/b&gt;</dd>")
    });
    let (_, none) = scene.open("/sagas?status=stuck", None);
    assert!(none.contains("None of this status and name."), "{none}");
    assert_eq!(page(&scene.gateway, "/sagas?status=ended", None).status, 400);
    scene.upstream.release();
    until("the end of all", || scene.open("/sagas", None).1.contains("None. A saga is here"));
}

#[test]
fn the_menu_has_sagas_if_they_are_configured_or_in_the_store() {
    let (upstream, redis) = (Upstream::start(), RedisServer::start());
    let plain = launch(&upstream, &redis.url(), SETTINGS);
    let menu = |gateway: &Gateway| page(gateway, "/", None).text().contains("href=\"/sagas\"");
    assert!(!menu(&plain));
    let gateway = launch(&upstream, &redis.url(), &format!("{SETTINGS}{ORDERS}"));
    assert!(menu(&gateway));
    let scene = Scene { gateway, upstream };
    let id = scene.refused_and_not_undone();
    assert!(menu(&plain), "it takes the sagas of others over");
    let text = page(&plain, &format!("/sagas/{id}"), None).text();
    assert!(text.contains("undo refused, stuck"), "{text}");
}

#[test]
fn whoever_uses_a_keyboard_stays_at_a_step_while_the_page_follows_the_saga() {
    let scene = Scene::new("");
    let client = order("k", "hold").send_aside(scene.gateway.port);
    until("the shipment to begin", || {
        scene.upstream.seen().iter().any(|seen| seen.line.contains("/v1/shipments"))
    });
    let id = scene.only_saga();
    let browser = Browser::start(scene.gateway.admin);
    browser.open(&format!("/sagas/{id}"));
    browser.tab_to("#graph-0");
    browser.script("document.querySelector('#live').dataset.old = '1'");
    until("the page to have followed", || {
        browser.script("return document.querySelector('#live').dataset.old || null").is_null()
    });
    assert_eq!(browser.script("return document.activeElement.id"), "graph-0");
    scene.upstream.release();
    client.join().unwrap();
    browser.shows("h1", "completed");
    browser.shows("#announcement", "Saga order is completed");
    nothing_is_wrong(&browser);
}
