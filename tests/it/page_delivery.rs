//! The place "Delivery" of the page: sinks, dead letters, and the decisions about them.

use crate::admin::TOKENS;
use crate::harness::browser::{ENTER, View};
use crate::harness::{Answer, Browser, Gateway, Hooks, Request, Upstream, until};
use crate::page::{Form, cookie, page, value};

/// The settings of a gateway with one sink, which gives up after two attempts.
fn settings(hooks: &Hooks, more: &str) -> String {
    let port = hooks.port;
    format!(
        r#"
[store]
format = 2
[[sinks]]
name = "ledger"
webhook = {{ url = "http://127.0.0.1:{port}/hidden-path", secrets = [{{ env = "HASHING_SECRET" }}] }}
retry = {{ first = "20ms", max = "50ms", attempts = 2 }}
{more}
"#
    )
}

const ROUTES: &str = r#"
[[routes]]
name = "payments"
path = "/v1/payments"
[[routes.publish]]
on = ["completed"]
to = ["ledger"]
data = { answer = "response:" }
"#;

/// A gateway, and the receiver of its sink.
struct Scene {
    gateway: Gateway,
    hooks: Hooks,
    _upstream: Upstream,
}

impl Scene {
    /// Starts a scene with a receiver that refuses everything.
    fn new(more: &str) -> Scene {
        let (upstream, hooks) = (Upstream::start(), Hooks::deciding(|_, _| 500));
        let gateway = Gateway::with(upstream.port, &settings(&hooks, more), ROUTES);
        Scene { gateway, hooks, _upstream: upstream }
    }

    /// Executes a payment.
    fn pay(&self, key: &str) {
        let pay = Request::pay(key, "{}").act(r#"type application/json, body {"card":"<b>4711"}"#);
        let answer = pay.send(self.gateway.port);
        assert_eq!(answer.status, 201, "{}", answer.text());
    }

    /// Waits for this many dead letters, and returns their ids, latest first.
    fn buried(&self, count: usize) -> Vec<String> {
        let listed = || {
            let listed = self.api("/v1/dead-letters?limit=200").json();
            let letters = listed["dead_letters"].as_array().unwrap().clone();
            letters.iter().map(|letter| letter["id"].as_str().unwrap().to_owned()).collect()
        };
        until(&format!("{count} dead letters"), || Vec::<String>::len(&listed()) == count);
        listed()
    }

    /// Returns the operation of a dead letter.
    fn operation_of(&self, id: &str) -> String {
        let letter = self.api(&format!("/v1/dead-letters/{id}")).json();
        letter["event"]["subject"].as_str().unwrap().to_owned()
    }

    fn api(&self, target: &str) -> Answer {
        let request = Request::new("GET", target).host("127.0.0.1");
        request.field("Authorization", "Bearer letmein").send(self.gateway.admin)
    }

    /// Opens a page, and returns the values of its forms, and its text.
    fn open(&self, path: &str, session: Option<&str>) -> (Form, String) {
        let answer = page(&self.gateway, path, session);
        assert_eq!(answer.status, 200, "{path}: {}", answer.text());
        let text = answer.text();
        let cookie = session.map_or_else(|| cookie(&answer), str::to_owned);
        let proof = if text.contains("name=\"proof\"") { value(&text, "proof") } else { "".into() };
        (Form { cookie, proof, version: String::new() }, text)
    }

    fn send(&self, form: &Form, path: &str, rest: &str) -> Answer {
        form.request(&self.gateway, path, rest).send(self.gateway.admin)
    }

    /// Signs in, and returns the cookie of the session.
    fn sign_in(&self, token: &str) -> String {
        let (form, _) = self.open("/sign-in", None);
        let known = self.send(&form, "/sign-in", &format!("token={token}&next=/delivery"));
        assert_eq!(known.status, 303, "{}", known.text());
        cookie(&known)
    }
}

#[test]
fn a_reader_sees_sinks_and_dead_letters_without_contents_and_changes_nothing() {
    let scene = Scene::new(TOKENS);
    scene.pay("k");
    let id = scene.buried(1).remove(0);
    let letter = format!("/delivery/dead-letters/{id}");
    for (token, may_operate) in [("letmesee", false), ("letmein", true)] {
        let session = scene.sign_in(token);
        let (form, list) = scene.open("/delivery", Some(&session));
        for shown in
            ["ledger", "running", "failing", &id, "2 attempts, status 500", "1 by receiver"]
        {
            assert!(list.contains(shown), "{token}: {shown}: {list}");
        }
        assert!(list.contains(&format!("http://127.0.0.1:{}", scene.hooks.port)), "{list}");
        assert!(!list.contains("hidden-path") && !list.contains("4711"), "{list}");
        let (_, details) = scene.open(&letter, Some(&session));
        assert!(details.contains("onceward.operation.completed"), "{details}");
        assert!(details.contains(&scene.operation_of(&id)), "{details}");
        assert_eq!(details.contains("&lt;b&gt;4711"), may_operate, "{details}");
        assert_eq!(details.contains("<pre class=\"wrapped\">ok</pre>"), may_operate, "{details}");
        assert!(!details.contains("<b>4711"));
        for action in ["pause", "requeue", "discard"] {
            assert_eq!(list.contains(&format!("/{action}\"")), may_operate, "{action}: {list}");
        }
        if !may_operate {
            for path in [
                "/delivery/sinks/ledger/pause",
                "/delivery/sinks/ledger/resume",
                "/delivery/sinks/ledger/test",
                "/delivery/sinks/ledger/requeue",
                &format!("{letter}/requeue"),
                &format!("{letter}/discard"),
            ] {
                let refused = scene.send(&form, path, "reason=r");
                assert_eq!(refused.status, 403, "{path}: {}", refused.text());
            }
        }
    }
    scene.buried(1);
}

#[test]
fn a_sink_is_paused_with_a_reason_and_resumed_by_forms_of_the_page_only() {
    let scene = Scene::new("");
    scene.hooks.decide(|_, _| 200);
    let (form, text) = scene.open("/delivery", None);
    assert!(text.contains("None. An event that its sink does not take"), "{text}");
    let pause = "/delivery/sinks/ledger/pause";
    let state = || scene.api("/v1/sinks").json()["sinks"][0]["state"].as_str().unwrap().to_owned();
    let elsewhere = form.request(&scene.gateway, pause, "reason=r");
    let elsewhere = elsewhere.field("Sec-Fetch-Site", "cross-site").send(scene.gateway.admin);
    assert_eq!(elsewhere.status, 401);
    let bare = Form { proof: String::new(), cookie: form.cookie.clone(), ..form };
    assert_eq!(scene.send(&bare, pause, "reason=r").status, 403, "a cookie alone");
    let (form, _) = scene.open("/delivery", None);
    let unreasoned = scene.send(&form, pause, "reason=+");
    assert!(unreasoned.status == 400 && unreasoned.text().contains("Nothing was changed"));
    assert_eq!(state(), "running");

    let paused = scene.send(&form, pause, "reason=they+%3Cmove%3E&kind=gateway");
    let there = "/delivery?kind=gateway&done=paused";
    assert_eq!((paused.status, paused.get("location")), (303, Some(there)));
    let (form, text) = scene.open(there, Some(&form.cookie));
    assert!(text.contains("Paused: the sink gets nothing"), "{text}");
    assert!(text.contains("they &lt;move&gt;") && text.contains("by loopback"), "{text}");
    until("the metric", || scene.gateway.metric("onceward_sink_paused{sink=\"ledger\"} ") == 1.0);
    scene.pay("k");
    let tested = scene.send(&form, "/delivery/sinks/ledger/test", "");
    assert!(tested.text().contains("was delivered to ledger: status 200"), "{}", tested.text());
    let types = || scene.hooks.attempts().iter().map(|hook| hook.text("type")).collect::<Vec<_>>();
    assert_eq!(types(), ["onceward.test"], "a paused sink gets tests only");
    let operation = scene.api("/v1/operations").json()["operations"][0]["operation"].clone();
    let operation = format!("/operations/{}", operation.as_str().unwrap());
    let (_, waiting) = scene.open(&operation, None);
    assert!(waiting.contains("Waits for ledger") && waiting.contains("not attempted"), "{waiting}");

    let resumed = scene.send(&form, "/delivery/sinks/ledger/resume", "");
    assert_eq!(resumed.get("location"), Some("/delivery?done=resumed"));
    scene.hooks.wait_for(2);
    assert_eq!(state(), "running");
    until("nothing waits", || {
        let (_, text) = scene.open(&operation, None);
        text.contains("Undelivered events") && !text.contains("Waits for")
    });
    scene.hooks.decide(|_, _| 503);
    let tested = scene.send(&form, "/delivery/sinks/ledger/test", "");
    assert!(tested.text().contains("was not delivered to ledger: status 503, “ok”"));
    let unknown = scene.send(&form, "/delivery/sinks/ledgre/pause", "reason=r");
    assert!(unknown.status == 404 && unknown.text().contains("Nothing was changed"));
    scene.gateway.logged("sink paused by an operator");
    scene.gateway.logged("sink resumed by an operator");
}

#[test]
fn a_requeue_from_the_page_really_sends_again_and_a_discard_never_does() {
    let scene = Scene::new("");
    scene.pay("k");
    let id = scene.buried(1).remove(0);
    let path = format!("/delivery/dead-letters/{id}");
    let operation = format!("/operations/{}", scene.operation_of(&id));
    let (form, text) = scene.open(&operation, None);
    assert!(text.contains("Dead letter of ledger") && text.contains(&path), "{text}");
    until("the number in the menu", || {
        let text = page(&scene.gateway, "/", None).text();
        text.contains(">1</span><span class=\"unseen\"> dead letter</span>")
    });
    assert_eq!(scene.send(&form, &format!("{path}/requeue"), "").status, 303);
    until("two attempts more", || scene.hooks.attempts().len() == 4);
    assert_eq!(scene.buried(1), [id.as_str()], "it is refused again, under its id");
    scene.hooks.decide(|_, _| 200);
    let done = scene.send(&form, &format!("{path}/requeue"), "sink=ledger");
    assert_eq!(done.get("location"), Some("/delivery?sink=ledger&done=requeued"));
    scene.hooks.wait_for(1);
    let attempts = scene.hooks.attempts();
    assert!(attempts.iter().all(|hook| hook.id() == attempts[0].id()));
    scene.buried(0);
    let again = scene.send(&form, &format!("{path}/requeue"), "");
    assert!(again.status == 404 && again.text().contains("Nothing was changed"));
    assert_eq!(page(&scene.gateway, &path, None).status, 404);

    scene.hooks.decide(|_, _| 400);
    scene.pay("other");
    let id = scene.buried(1).remove(0);
    let discard = format!("/delivery/dead-letters/{id}/discard");
    assert_eq!(scene.send(&form, &discard, "reason=").status, 400);
    let done = scene.send(&form, &discard, "reason=booked+by+hand");
    assert_eq!(done.get("location"), Some("/delivery?done=discarded"));
    scene.buried(0);
    until("the menu without a number", || {
        !page(&scene.gateway, "/", None).text().contains("class=\"count\"")
    });
    scene.gateway.logged("booked by hand");
}

#[test]
fn dead_letters_are_filtered_paged_and_requeued_all_after_a_confirmation() {
    let scene = Scene::new("");
    for n in 0..53 {
        scene.pay(&format!("k{n}"));
    }
    let ids = scene.buried(53);
    let (form, first) = scene.open("/delivery?sink=ledger&kind=receiver", None);
    let next = first.split("id=\"further\" href=\"").nth(1).unwrap().split('"').next().unwrap();
    let next = next.replace("&amp;", "&");
    assert!(next.starts_with("/delivery?sink=ledger&kind=receiver&cursor="), "{next}");
    let (_, second) = scene.open(&next, None);
    let shown = |text: &str| {
        let id = |id: &&String| text.contains(&format!("id=\"{id}\""));
        ids.iter().filter(id).cloned().collect::<Vec<_>>()
    };
    assert_eq!((shown(&first), shown(&second)), (ids[..50].to_vec(), ids[50..].to_vec()));
    let (_, none) = scene.open("/delivery?kind=gateway", None);
    assert!(none.contains("None of this sink and kind."), "{none}");
    assert_eq!(page(&scene.gateway, "/delivery?kind=both", None).status, 400);
    assert_eq!(page(&scene.gateway, "/delivery/sinks/ledgre/requeue", None).status, 404);

    let path = "/delivery/sinks/ledger/requeue";
    let (_, asked) = scene.open(path, None);
    assert!(asked.contains("<strong>53 dead letters</strong> will wait"), "{asked}");
    scene.buried(53);
    scene.hooks.decide(|_, _| 200);
    let done = scene.send(&form, path, "");
    assert_eq!(done.get("location"), Some("/delivery?done=all&count=53"));
    scene.hooks.wait_for(53);
    scene.buried(0);
}

#[test]
fn without_scripts_and_with_a_keyboard_alone_a_sink_is_paused_and_a_dead_letter_discarded() {
    let scene = Scene::new("");
    scene.pay("k");
    let id = scene.buried(1).remove(0);
    let plain = Browser::with(scene.gateway.admin, View { scripts: false, ..View::default() });
    plain.open("/delivery");
    plain.click("#pause-ledger");
    plain.fill("#pause-reason-ledger", "they move");
    plain.click("form[action$=pause] button");
    plain.shows(".notice.good", "Paused");
    plain.shows("#resume-ledger", "Resume");

    let browser = Browser::start(scene.gateway.admin);
    browser.open("/");
    browser.shows("#dead-letter-count", "1");
    browser.tab_to("nav a[href='/delivery']");
    browser.press(&[ENTER]);
    browser.shows("h1", "Delivery");
    browser.shows("#live", "they move");
    browser.tab_to(&format!("#discard-{id}"));
    browser.press(&[ENTER]);
    browser.tab_to(&format!("#discard-reason-{id}"));
    browser.write("booked by hand");
    browser.press(&[ENTER]);
    browser.shows(".notice.good", "Discarded");
    browser.shows("#live", "None. An event");
    let complaints = browser.complaints();
    assert!(complaints.is_empty(), "{complaints:?}");
}

#[test]
fn the_page_follows_burials_and_whoever_uses_a_keyboard_stays_where_they_are() {
    let scene = Scene::new("");
    let browser = Browser::start(scene.gateway.admin);
    browser.open("/delivery");
    browser.shows("#live", "None. An event");
    browser.tab_to("#test-ledger");
    scene.pay("k");
    let id = scene.buried(1).remove(0);
    browser.shows(&format!("#{id}"), "onceward.operation.completed");
    browser.shows("#dead-letter-count", "1");
    browser.shows("#announcement", "1 dead letter");
    assert_eq!(browser.script("return document.activeElement.id"), "test-ledger");
    let complaints = browser.complaints();
    assert!(complaints.is_empty(), "{complaints:?}");
}
