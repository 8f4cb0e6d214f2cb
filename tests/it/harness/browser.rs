//! A real Chromium, driven over WebDriver (W3C) by the tests' own client.

use std::process::{Child, Command, Stdio};
use std::time::Duration;

use serde_json::{Value, json};

use super::client::Connection;
use super::{Request, free_port, until, within_patience};

/// The member in which WebDriver returns the id of an element.
const ELEMENT: &str = "element-6066-11e4-a52e-4f735466cecf";

/// Time to start a browser: usually seconds, far more on a machine that builds at the same time.
const START: Duration = Duration::from_secs(90);

/// Keys without a character (W3C WebDriver, section 17.4.2).
pub const TAB: &str = "\u{E004}";
pub const ENTER: &str = "\u{E007}";

/// Options of a browser.
#[derive(Clone, Copy)]
pub struct View {
    pub width: u32,
    pub height: u32,
    pub dark: bool,
    pub scripts: bool,
}

impl Default for View {
    fn default() -> View {
        View { width: 1280, height: 900, dark: false, scripts: true }
    }
}

/// A headless browser with one window; closed when dropped.
pub struct Browser {
    driver: Child,
    port: u16,
    session: String,
    site: String,
}

impl Browser {
    /// Opens a browser for the admin port of a gateway.
    pub fn start(admin: u16) -> Browser {
        Browser::with(admin, View::default())
    }

    pub fn with(admin: u16, view: View) -> Browser {
        let port = free_port();
        let driver = Command::new("chromedriver")
            .arg(format!("--port={port}"))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("chromedriver is not installed: apt-get install chromium chromium-driver");
        let mut browser = Browser {
            driver,
            port,
            session: String::new(),
            site: format!("http://127.0.0.1:{admin}"),
        };
        until("chromedriver to answer", || {
            std::net::TcpStream::connect(("127.0.0.1", port)).is_ok()
        });
        let size = format!("--window-size={},{}", view.width, view.height);
        let scheme =
            format!("--blink-settings=preferredColorScheme={}", if view.dark { 0 } else { 1 });
        let args = [
            "--headless=new",
            "--no-sandbox",
            "--disable-dev-shm-usage",
            "--disable-gpu",
            "--hide-scrollbars",
            &size,
            &scheme,
        ];
        let mut options = json!({ "args": args });
        if !view.scripts {
            options["prefs"] = json!({ "profile.managed_default_content_settings.javascript": 2 });
        }
        let wanted =
            json!({ "goog:chromeOptions": options, "goog:loggingPrefs": { "browser": "ALL" } });
        let begun =
            browser.call("POST", "/session", &json!({ "capabilities": { "alwaysMatch": wanted } }));
        browser.session = begun["sessionId"].as_str().unwrap().to_owned();
        browser
    }

    /// Opens a page of the gateway.
    pub fn open(&self, path: &str) {
        self.command("POST", "/url", &json!({ "url": format!("{}{path}", self.site) }));
    }

    /// Returns the path and query of the current page.
    pub fn path(&self) -> String {
        let url = self.command("GET", "/url", &Value::Null);
        url.as_str()
            .unwrap()
            .strip_prefix(&self.site)
            .unwrap_or_else(|| panic!("left the gateway: {url}"))
            .to_owned()
    }

    /// Returns the text of the first matching element, or an empty text without one.
    pub fn text(&self, css: &str) -> String {
        let Some(element) = self.find(css) else { return String::new() };
        // The page may have replaced the element between the two requests.
        let text = self.try_command("GET", &format!("/element/{element}/text"), &Value::Null);
        text.ok().and_then(|text| text.as_str().map(str::to_owned)).unwrap_or_default()
    }

    /// Waits until the first matching element shows a text.
    #[track_caller]
    pub fn shows(&self, css: &str, text: &str) {
        let mut seen = String::new();
        let shown = within_patience(|| {
            seen = self.text(css);
            seen.contains(text)
        });
        assert!(shown, "waited for {css} to show {text:?} on {}; it shows {seen:?}", self.path());
    }

    pub fn attribute(&self, css: &str, name: &str) -> Option<String> {
        let element = self.find(css)?;
        self.command("GET", &format!("/element/{element}/attribute/{name}"), &Value::Null)
            .as_str()
            .map(str::to_owned)
    }

    #[track_caller]
    pub fn click(&self, css: &str) {
        self.act_on(css, |element| {
            self.try_command("POST", &format!("/element/{element}/click"), &json!({}))
        });
    }

    /// Types into a field.
    #[track_caller]
    pub fn fill(&self, css: &str, text: &str) {
        self.act_on(css, |element| {
            self.try_command("POST", &format!("/element/{element}/clear"), &json!({}))?;
            self.try_command("POST", &format!("/element/{element}/value"), &json!({ "text": text }))
        });
    }

    /// Acts on the first matching element. If the page replaces it in between, the next match is
    /// tried.
    #[track_caller]
    fn act_on(&self, css: &str, act: impl Fn(&str) -> Result<Value, Value>) {
        let mut why = Value::Null;
        let acted = within_patience(|| match self.find(css).map(|element| act(&element)) {
            Some(Ok(_)) => true,
            Some(Err(error)) if error["error"] == "stale element reference" => {
                why = error;
                false
            }
            Some(Err(error)) => panic!("{css} on {}: {error}", self.path()),
            None => false,
        });
        assert!(
            acted,
            "there is no {css} to act on at {}: {why}\n{}",
            self.path(),
            self.text("body")
        );
    }

    /// Presses keys one after the other, wherever the focus is.
    pub fn press(&self, keys: &[&str]) {
        let actions: Vec<Value> = keys
            .iter()
            .flat_map(|key| ["keyDown", "keyUp"].map(|kind| json!({ "type": kind, "value": key })))
            .collect();
        let actions = json!([{ "type": "key", "id": "keyboard", "actions": actions }]);
        self.command("POST", "/actions", &json!({ "actions": actions }));
    }

    /// Types a text, wherever the focus is.
    pub fn write(&self, text: &str) {
        let keys: Vec<String> = text.chars().map(String::from).collect();
        self.press(&keys.iter().map(String::as_str).collect::<Vec<_>>());
    }

    /// Presses Tab until an element has the focus; fails if it never gets it.
    #[track_caller]
    pub fn tab_to(&self, css: &str) {
        const STOPS_MAX: usize = 60;
        for _ in 0..STOPS_MAX {
            let there = self.script(&format!(
                "return document.activeElement !== null && document.activeElement.matches({css:?})"
            ));
            if there == Value::Bool(true) {
                return;
            }
            self.press(&[TAB]);
        }
        panic!("{STOPS_MAX} times Tab do not lead to {css}");
    }

    /// Runs a script and returns its result.
    pub fn script(&self, script: &str) -> Value {
        self.command("POST", "/execute/sync", &json!({ "script": script, "args": [] }))
    }

    /// Returns the console messages since the last call: script errors, missing files, and requests
    /// blocked by the page's policy.
    pub fn complaints(&self) -> Vec<String> {
        let entries = self.command("POST", "/se/log", &json!({ "type": "browser" }));
        entries.as_array().unwrap().iter().map(|entry| entry["message"].to_string()).collect()
    }

    fn find(&self, css: &str) -> Option<String> {
        let found =
            self.command("POST", "/elements", &json!({ "using": "css selector", "value": css }));
        found.as_array()?.first()?[ELEMENT].as_str().map(str::to_owned)
    }

    #[track_caller]
    fn command(&self, method: &str, path: &str, body: &Value) -> Value {
        self.try_command(method, path, body)
            .unwrap_or_else(|error| panic!("{method} {path} {body}: {error}"))
    }

    fn try_command(&self, method: &str, path: &str, body: &Value) -> Result<Value, Value> {
        let answer = self.send(method, &format!("/session/{}{path}", self.session), body);
        match answer["value"].get("error") {
            Some(_) => Err(answer["value"].clone()),
            None => Ok(answer["value"].clone()),
        }
    }

    #[track_caller]
    fn call(&self, method: &str, path: &str, body: &Value) -> Value {
        let answer = self.send(method, path, body);
        assert!(answer["value"].get("error").is_none(), "{method} {path}: {answer}");
        answer["value"].clone()
    }

    fn send(&self, method: &str, path: &str, body: &Value) -> Value {
        let request = Request::new(method, path).host("127.0.0.1");
        let request = if body.is_null() { request } else { request.json(&body.to_string()) };
        Connection::try_open(self.port, START)
            .expect("chromedriver answers")
            .exchange(&request)
            .json()
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        // The driver ends the browser; if it is killed first, the browser stays behind.
        let end = Request::new("DELETE", &format!("/session/{}", self.session)).host("127.0.0.1");
        if let Some(mut connection) = Connection::try_open(self.port, START)
            && connection.try_write(&end.bytes())
        {
            let _ = connection.try_read("DELETE");
        }
        let _ = self.driver.kill();
        let _ = self.driver.wait();
    }
}
