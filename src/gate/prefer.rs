//! The preferences of a client (RFC 7240) that matter to sagas.

use std::time::Duration;

use http::{HeaderMap, HeaderName};

/// The field with the preferences.
const PREFER: HeaderName = HeaderName::from_static("prefer");

/// The preferences in a request. Unknown and malformed ones are ignored (RFC 7240, section 2).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ClientPreference {
    /// `respond-async`: an answer that takes longer than the wait is not waited for.
    pub respond_async: bool,
    /// `wait=N`: how long the client waits.
    pub wait: Option<Duration>,
}

impl ClientPreference {
    /// Reads the preferences. Of a preference that comes twice, the first one counts.
    pub fn of(headers: &HeaderMap) -> ClientPreference {
        let mut found = ClientPreference::default();
        let lines = headers.get_all(PREFER).iter().filter_map(|line| line.to_str().ok());
        for preference in lines.flat_map(|line| line.split(',')) {
            let preference = preference.split(';').next().unwrap_or_default();
            let (name, value) = preference.split_once('=').unwrap_or((preference, ""));
            let (name, value) = (name.trim(), value.trim().trim_matches('"'));
            if name.eq_ignore_ascii_case("respond-async") {
                found.respond_async = true;
            } else if name.eq_ignore_ascii_case("wait") && found.wait.is_none() {
                found.wait = value.parse().ok().map(Duration::from_secs);
            }
        }
        found
    }

    /// Returns how long a request that begins or repeats a saga waits at most; `None` if only the
    /// route limits the wait.
    pub fn longest_wait(self) -> Option<Duration> {
        self.respond_async.then(|| self.wait.unwrap_or_default())
    }

    /// Returns the value of `Preference-Applied` in an answer that was not waited for.
    pub fn applied(self) -> String {
        match self.wait {
            Some(wait) => format!("respond-async, wait={}", wait.as_secs()),
            None => "respond-async".to_owned(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn preferences_are_read_in_every_spelling() {
        let seconds = Duration::from_secs;
        for (lines, respond_async, wait) in [
            (&[][..], false, None),
            (&["respond-async"][..], true, None),
            (&["Respond-Async , WAIT = 5"], true, Some(seconds(5))),
            (&["wait=20"], false, Some(seconds(20))),
            (
                &["return=minimal; x=y, respond-async;foo", "wait=\"3\"; bar=1"],
                true,
                Some(seconds(3)),
            ),
            (&["wait=1, wait=9"], false, Some(seconds(1))),
            (&["wait=soon", "wait=-1"], false, None),
            (&["not-respond-async, respond-asynchronous"], false, None),
        ] {
            let mut headers = HeaderMap::new();
            for line in lines {
                headers.append(PREFER, line.parse().unwrap());
            }
            let expected = ClientPreference { respond_async, wait };
            assert_eq!(ClientPreference::of(&headers), expected, "{lines:?}");
        }
    }
}
